//! The etcd v3 API as it is on the wire (v3.6): messages, gRPC servers and clients, generated at
//! build from `proto/`. Package names, field numbers and types are etcd's; the split into files
//! follows the services.

pub mod codec;

/// The files' descriptors, as a `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("etcd_descriptor");

pub mod mvccpb {
    //! Keys, values and events.
    tonic::include_proto!("mvccpb");
}

pub mod authpb {
    //! Users, roles and permissions.
    tonic::include_proto!("authpb");
}

pub mod etcdserverpb {
    //! KV, Watch, Lease, Cluster, Maintenance and Auth.
    tonic::include_proto!("etcdserverpb");
}

pub mod v3lockpb {
    //! Lock.
    tonic::include_proto!("v3lockpb");
}

pub mod v3electionpb {
    //! Election.
    tonic::include_proto!("v3electionpb");
}

pub mod health {
    //! gRPC's own health service, `grpc.health.v1`. The crate tonic-health lacks its List.
    tonic::include_proto!("grpc.health.v1");
}
