//! Alarms: what a keyspace refuses until somebody has looked.

use etcd_proto::etcdserverpb::{AlarmType, PutRequest, RequestOp, TxnRequest, request_op};

/// Raised alarms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alarms(u8);

impl Alarms {
    /// As the store keeps them.
    pub fn from_bits(bits: u8) -> Alarms {
        Alarms(bits)
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    pub fn is_active(self, kind: AlarmType) -> bool {
        self.0 & mask(kind) != 0
    }

    pub fn with(self, kind: AlarmType, active: bool) -> Alarms {
        Alarms(if active {
            self.0 | mask(kind)
        } else {
            self.0 & !mask(kind)
        })
    }

    pub fn active(self) -> impl Iterator<Item = AlarmType> {
        [AlarmType::Nospace, AlarmType::Corrupt]
            .into_iter()
            .filter(move |kind| self.is_active(*kind))
    }
}

fn mask(kind: AlarmType) -> u8 {
    match kind {
        AlarmType::None => 0,
        AlarmType::Nospace => 1,
        AlarmType::Corrupt => 2,
    }
}

/// Estimates of what a write takes, in bytes; etcd's.
const KEY_OVERHEAD: u64 = 256;
pub const LEASE_COST: u64 = 64;

pub fn put_cost(request: &PutRequest) -> u64 {
    KEY_OVERHEAD + request.key.len() as u64 + request.value.len() as u64
}

/// Of the more expensive of its two lists.
pub fn txn_cost(request: &TxnRequest) -> u64 {
    list_cost(&request.success).max(list_cost(&request.failure))
}

fn list_cost(operations: &[RequestOp]) -> u64 {
    let cost = |operation: &RequestOp| match &operation.request {
        Some(request_op::Request::RequestPut(put)) => put_cost(put),
        Some(request_op::Request::RequestTxn(txn)) => txn_cost(txn),
        _ => 0,
    };
    operations.iter().map(cost).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn alarms_are_raised_and_disarmed_one_by_one() {
        let both = Alarms::default()
            .with(AlarmType::Nospace, true)
            .with(AlarmType::Corrupt, true);
        assert_eq!(both.active().count(), 2);
        let one = both.with(AlarmType::Nospace, false);
        assert!(!one.is_active(AlarmType::Nospace) && one.is_active(AlarmType::Corrupt));
        assert_eq!(Alarms::from_bits(one.bits()), one);
        assert_eq!(one.with(AlarmType::None, true), one);
    }

    #[test]
    fn a_transaction_costs_what_its_dearer_list_does() {
        let put = PutRequest {
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"value"),
            ..PutRequest::default()
        };
        assert_eq!(put_cost(&put), 264);
        let op = RequestOp {
            request: Some(request_op::Request::RequestPut(put)),
        };
        let inner = TxnRequest {
            success: vec![op.clone()],
            failure: vec![op.clone(), op],
            ..TxnRequest::default()
        };
        assert_eq!(txn_cost(&inner), 528);
        let outer = TxnRequest {
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestTxn(inner)),
            }],
            ..TxnRequest::default()
        };
        assert_eq!(txn_cost(&outer), 528);
    }
}
