//! The limit on a keyspace's size, as etcd keeps it: who exceeds it raises an alarm, and the alarm refuses
//! writes until an operator has made room and disarmed it.

use etcd_proto::etcdserverpb::AlarmType;

use super::Backend;
use crate::etcd::batch::Command;
use crate::etcd::error::Error;
use crate::etcd::keyspace::Keyspace;

impl Backend {
    /// The name of an alarm that is raised and not excluded.
    pub async fn alarm_besides<'a>(
        &self,
        excluded: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<&'static str> {
        // A keyspace that cannot be had is not healthy, and says so by itself.
        let keyspace = self.keyspace().await.ok()?;
        let alarms = keyspace.state.read().alarms;
        let mut raised = alarms.active().map(|alarm| alarm.as_str_name());
        raised.find(|raised| !excluded.clone().any(|name| name == *raised))
    }

    /// Whether `cost` more bytes fit.
    ///
    /// # Errors
    /// `NoSpace` if not; the alarm is then raised.
    pub async fn check_quota(&self, keyspace: &Keyspace, cost: u64) -> Result<(), Error> {
        let Some(quota) = self.server.config.quota_bytes() else {
            return Ok(());
        };
        let used = keyspace.state.read().log_bytes;
        if cost == 0 || used.saturating_add(cost) < quota {
            return Ok(());
        }
        let raise = Command::Alarm {
            kind: AlarmType::Nospace,
            active: true,
        };
        keyspace.submit(raise).await?;
        Err(Error::NoSpace)
    }
}
