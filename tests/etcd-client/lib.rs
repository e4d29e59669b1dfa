//! Only tests, in `tests/`: Materia etcd with the crate `etcd-client`.
