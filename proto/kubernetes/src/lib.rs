//! What Kubernetes' objects look like as Protocol Buffers, as a description: whoever decodes them
//! makes JSON of them, so nobody needs types.
//!
//! The messages have their own packages, since no package name is ever on the wire. Only what a
//! cluster serves is here.

/// An encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/kubernetes.binpb"));
