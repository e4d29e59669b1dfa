//! Bodies of requests in Kubernetes' protobuf encoding, made into the JSON that the rest works on.
//! client-go's typed clients send it for the built-in kinds, kubectl among them.
//!
//! Answers are JSON always: whoever sends protobuf reads both, by the answer's media type.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost_reflect::{
    DescriptorPool, DynamicMessage, MapKey, MessageDescriptor, ReflectMessage as _, Value as Field,
};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// First bytes of every body; a message `Unknown` follows, which wraps the object's.
const MAGIC: &[u8] = b"k8s\0";

/// Fields whose message's fields stand, in JSON, among those of the message around it.
const INLINE: [&str; 11] = [
    "k8s.core.v1.ConfigMapEnvSource.localObjectReference",
    "k8s.core.v1.ConfigMapKeySelector.localObjectReference",
    "k8s.core.v1.ConfigMapProjection.localObjectReference",
    "k8s.core.v1.ConfigMapVolumeSource.localObjectReference",
    "k8s.core.v1.EphemeralContainer.ephemeralContainerCommon",
    "k8s.core.v1.PersistentVolumeSpec.persistentVolumeSource",
    "k8s.core.v1.Probe.handler",
    "k8s.core.v1.SecretEnvSource.localObjectReference",
    "k8s.core.v1.SecretKeySelector.localObjectReference",
    "k8s.core.v1.SecretProjection.localObjectReference",
    "k8s.core.v1.Volume.volumeSource",
];

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(kubernetes_proto::FILE_DESCRIPTOR_SET)
        .expect("the description of Kubernetes' messages is compiled with the program")
});

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum DecodeError {
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Magic,
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\" in protobuf")]
    Kind { api_version: String, kind: String },
    #[error("the message is malformed: {0}")]
    Malformed(String),
}

fn malformed(error: impl std::fmt::Display) -> DecodeError {
    DecodeError::Malformed(error.to_string())
}

/// The object in `body`.
pub fn decode(body: Bytes) -> Result<Value, DecodeError> {
    if !body.starts_with(MAGIC) {
        return Err(DecodeError::Magic);
    }
    let unknown = message("k8s.runtime.Unknown", body.slice(MAGIC.len()..))?;
    let field = |message: &DynamicMessage, name: &str| {
        message
            .get_field_by_name(name)
            .map(|value| value.into_owned())
    };
    let type_meta = field(&unknown, "typeMeta");
    let text = |name: &str| {
        let value = type_meta
            .as_ref()
            .and_then(|meta| field(meta.as_message()?, name));
        value
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let raw = field(&unknown, "raw")
        .and_then(|raw| raw.as_bytes().cloned())
        .unwrap_or_default();
    let name = message_of(&api_version, &kind);
    let decoded = match name {
        Some(name) => message(&name, raw)?,
        None => return Err(DecodeError::Kind { api_version, kind }),
    };
    let mut object = Map::new();
    object.insert(String::from("kind"), Value::String(kind));
    object.insert(String::from("apiVersion"), Value::String(api_version));
    add_fields(&mut object, &decoded)?;
    Ok(Value::Object(object))
}

/// Name of the message that holds a kind.
fn message_of(api_version: &str, kind: &str) -> Option<String> {
    let package = match (api_version, kind) {
        // Every group has these.
        (_, "DeleteOptions") => "k8s.meta.v1",
        ("v1", _) => "k8s.core.v1",
        ("apps/v1", _) => "k8s.apps.v1",
        ("coordination.k8s.io/v1", _) => "k8s.coordination.v1",
        ("discovery.k8s.io/v1", _) => "k8s.discovery.v1",
        ("policy/v1", _) => "k8s.policy.v1",
        ("storage.k8s.io/v1", _) => "k8s.storage.v1",
        _ => return None,
    };
    let name = format!("{package}.{kind}");
    POOL.get_message_by_name(&name).map(|_| name)
}

fn message(name: &str, bytes: Bytes) -> Result<DynamicMessage, DecodeError> {
    let descriptor: MessageDescriptor = POOL.get_message_by_name(name).ok_or_else(|| {
        // Only a name in this file can be wrong, and the tests look at each.
        malformed(format!("no message {name}"))
    })?;
    DynamicMessage::decode(descriptor, bytes).map_err(malformed)
}

fn add_fields(
    object: &mut Map<String, Value>,
    message: &DynamicMessage,
) -> Result<(), DecodeError> {
    for (field, value) in message.fields() {
        if INLINE.contains(&field.full_name())
            && let Field::Message(inner) = value
        {
            add_fields(object, inner)?;
            continue;
        }
        // An unset time is an empty message, and no value.
        let json = to_json(value)?;
        if !json.is_null() {
            object.insert(field.name().to_owned(), json);
        }
    }
    Ok(())
}

fn to_json(value: &Field) -> Result<Value, DecodeError> {
    Ok(match value {
        Field::Bool(value) => Value::from(*value),
        Field::I32(value) => Value::from(*value),
        Field::I64(value) => Value::from(*value),
        Field::U32(value) => Value::from(*value),
        Field::U64(value) => Value::from(*value),
        Field::F32(value) => Value::from(*value),
        Field::F64(value) => Value::from(*value),
        Field::String(value) => Value::from(value.as_str()),
        Field::Bytes(value) => Value::from(STANDARD.encode(value)),
        Field::EnumNumber(value) => Value::from(*value),
        Field::Message(message) => message_to_json(message)?,
        Field::List(values) => {
            let values = values.iter().map(to_json);
            Value::Array(values.collect::<Result<_, _>>()?)
        }
        Field::Map(entries) => {
            let mut object = Map::new();
            // In the order of the keys: the map itself has none.
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_by_key(|(key, _)| (*key).clone());
            for (key, value) in entries {
                let MapKey::String(key) = key else {
                    return Err(malformed("a map's key is not text"));
                };
                object.insert(key.clone(), to_json(value)?);
            }
            Value::Object(object)
        }
    })
}

/// As the kind's own JSON has it: some messages are text or numbers there.
fn message_to_json(message: &DynamicMessage) -> Result<Value, DecodeError> {
    let descriptor = message.descriptor();
    let number = |name: &str| {
        let value = message.get_field_by_name(name);
        value.and_then(|value| value.as_i64().or(value.as_i32().map(i64::from)))
    };
    let text = |name: &str| {
        let value = message.get_field_by_name(name);
        value.and_then(|value| value.as_str().map(str::to_owned))
    };
    Ok(match descriptor.full_name() {
        "k8s.meta.v1.Time" | "k8s.meta.v1.MicroTime" if !message.has_field_by_name("seconds") => {
            Value::Null
        }
        "k8s.meta.v1.Time" => {
            let time = date_time(number("seconds"), None)?;
            Value::from(time.format(&Rfc3339).map_err(malformed)?)
        }
        "k8s.meta.v1.MicroTime" => {
            let format = format_description!(
                "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
            );
            let time = date_time(number("seconds"), number("nanos"))?;
            Value::from(time.format(&format).map_err(malformed)?)
        }
        "k8s.meta.v1.FieldsV1" => {
            let raw = message.get_field_by_name("Raw");
            let raw = raw.and_then(|raw| raw.as_bytes().cloned());
            serde_json::from_slice(&raw.unwrap_or_default()).map_err(malformed)?
        }
        "k8s.resource.Quantity" => Value::from(text("string").unwrap_or_default()),
        "k8s.intstr.IntOrString" if number("type") == Some(0) => {
            Value::from(number("intVal").unwrap_or_default())
        }
        "k8s.intstr.IntOrString" => Value::from(text("strVal").unwrap_or_default()),
        _ => {
            let mut object = Map::new();
            add_fields(&mut object, message)?;
            Value::Object(object)
        }
    })
}

fn date_time(seconds: Option<i64>, nanos: Option<i64>) -> Result<OffsetDateTime, DecodeError> {
    let seconds = i128::from(seconds.unwrap_or_default());
    let nanos = i128::from(nanos.unwrap_or_default());
    OffsetDateTime::from_unix_timestamp_nanos(seconds * 1_000_000_000 + nanos).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use prost_reflect::prost::Message as _;
    use serde_json::json;

    use super::*;
    use crate::kubernetes::registry::resource::RESOURCES;

    /// A message with the fields that `fill` sets.
    fn build(name: &str, fill: impl FnOnce(&mut DynamicMessage)) -> DynamicMessage {
        let descriptor = POOL.get_message_by_name(name).expect(name);
        let mut message = DynamicMessage::new(descriptor);
        fill(&mut message);
        message
    }

    fn body(api_version: &str, kind: &str, raw: Vec<u8>) -> Bytes {
        let meta = build("k8s.runtime.TypeMeta", |meta| {
            meta.set_field_by_name("apiVersion", Field::String(api_version.to_owned()));
            meta.set_field_by_name("kind", Field::String(kind.to_owned()));
        });
        let unknown = build("k8s.runtime.Unknown", |unknown| {
            unknown.set_field_by_name("typeMeta", Field::Message(meta));
            unknown.set_field_by_name("raw", Field::Bytes(raw.into()));
        });
        [MAGIC, &unknown.encode_to_vec()].concat().into()
    }

    #[test]
    fn every_built_in_kind_has_a_message_and_every_inline_field_exists() {
        for resource in RESOURCES.iter().filter(|resource| resource.strategic_merge) {
            let name = message_of(&resource.api_version(), resource.kind);
            assert!(name.is_some(), "{}", resource.kind);
        }
        for path in INLINE {
            let (message, field) = path.rsplit_once('.').expect(path);
            let descriptor = POOL.get_message_by_name(message).expect(message);
            assert!(descriptor.get_field_by_name(field).is_some(), "{path}");
        }
    }

    #[test]
    fn an_object_becomes_its_json() {
        let name = build("k8s.core.v1.LocalObjectReference", |reference| {
            reference.set_field_by_name("name", Field::String(String::from("settings")));
        });
        let source = build("k8s.core.v1.ConfigMapKeySelector", |source| {
            source.set_field_by_name("localObjectReference", Field::Message(name));
            source.set_field_by_name("key", Field::String(String::from("k")));
            source.set_field_by_name("optional", Field::Bool(false));
        });
        let from = build("k8s.core.v1.EnvVarSource", |from| {
            from.set_field_by_name("configMapKeyRef", Field::Message(source));
        });
        let variable = build("k8s.core.v1.EnvVar", |variable| {
            variable.set_field_by_name("name", Field::String(String::from("V")));
            variable.set_field_by_name("valueFrom", Field::Message(from));
        });
        let container = build("k8s.core.v1.Container", |container| {
            container.set_field_by_name("name", Field::String(String::from("c")));
            container.set_field_by_name("image", Field::String(String::new()));
            container.set_field_by_name("env", Field::List(vec![Field::Message(variable)]));
        });
        let spec = build("k8s.core.v1.PodSpec", |spec| {
            spec.set_field_by_name("containers", Field::List(vec![Field::Message(container)]));
            spec.set_field_by_name("terminationGracePeriodSeconds", Field::I64(0));
        });
        let time = |seconds: Option<i64>| {
            let message = build("k8s.meta.v1.Time", |time| {
                if let Some(seconds) = seconds {
                    time.set_field_by_name("seconds", Field::I64(seconds));
                }
            });
            Field::Message(message)
        };
        let metadata = build("k8s.meta.v1.ObjectMeta", |metadata| {
            metadata.set_field_by_name("name", Field::String(String::from("p")));
            metadata.set_field_by_name("creationTimestamp", time(None));
            metadata.set_field_by_name("deletionTimestamp", time(Some(1_767_225_600)));
        });
        let pod = build("k8s.core.v1.Pod", |pod| {
            pod.set_field_by_name("metadata", Field::Message(metadata));
            pod.set_field_by_name("spec", Field::Message(spec));
        });
        assert_eq!(
            decode(body("v1", "Pod", pod.encode_to_vec())),
            Ok(json!({
                "kind": "Pod", "apiVersion": "v1",
                "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {
                    "containers": [{
                        "name": "c",
                        "env": [{
                            "name": "V",
                            "valueFrom": {"configMapKeyRef": {
                                "name": "settings", "key": "k", "optional": false,
                            }},
                        }],
                    }],
                    "terminationGracePeriodSeconds": 0,
                },
            }))
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let check = |body: Bytes, expect: &str| {
            let error = decode(body).expect_err(expect).to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(Bytes::from_static(b"{}"), "expected prefix");
        check(body("v1", "Gadget", Vec::new()), "no kind \"Gadget\"");
        check(body("apps/v1", "Pod", Vec::new()), "no kind \"Pod\"");
        check(body("v1", "Pod", vec![0x0a, 0xff]), "malformed");
        check(Bytes::from_static(b"k8s\0\x0a\xff"), "malformed");
    }
}
