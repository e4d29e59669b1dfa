"""Drives the etcd at 127.0.0.1:PORT with the client etcd3gw, which speaks JSON over HTTP."""

import sys
import threading

import etcd3gw

client = etcd3gw.client(host="127.0.0.1", port=int(sys.argv[1]), api_path="/v3/")


def check(found, expect):
    assert found == expect, f"{found!r} is not {expect!r}"


check(client.put("key", "value"), True)
check(client.get("key"), [b"value"])
client.put("key/a", "1")
client.put("key/b", "2")
check([value for value, _ in client.get_prefix("key/")], [b"1", b"2"])
check(client.create("key", "other"), False)
check(client.create("new", "value"), True)
check(client.replace("key", "value", "next"), True)
check(client.replace("key", "value", "never"), False)
check(client.delete("new"), True)
check(client.get("new"), [])
check(client.delete_prefix("key/"), True)

lease = client.lease(ttl=60)
client.put("leased", "value", lease=lease)
check([key.decode() if isinstance(key, bytes) else key for key in lease.keys()], ["leased"])
assert 0 < lease.ttl() <= 60
assert lease.refresh() == 60
check(lease.revoke(), True)
check(client.get("leased"), [])

events, cancel = client.watch("watched")
threading.Thread(target=lambda: client.put("watched", "seen")).start()
check(next(events)["kv"]["value"], b"seen")
cancel()

with client.lock("mutex", ttl=60) as lock:
    assert lock.is_acquired()

assert client.status()["version"].startswith("3.6.")
assert len(list(client.members())) == 1
print("all went well")
