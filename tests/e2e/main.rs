//! The real `cke`, driven by the real clients: clever-tools, kubectl, etcdctl, the crate `kube`.
//! (`etcd-client` has a crate of its own, `tests/etcd-client`, because its build needs protoc.)
//!
//! Every test starts a `cke` of its own on free ports, and [`harness::Cke::finish`] asks it for
//! broken invariants at the end. Time runs a few hundred times faster than real time, or by hand.

mod certificates;
mod clever;
mod command;
mod etcdctl;
mod harness;
mod http;
mod kubectl;
mod real_etcd;

mod access;
mod cluster_events;
mod crash;
mod determinism;
mod etcd_auth;
mod etcd_gateway;
mod etcd_maintenance;
mod etcd_operations;
mod etcdctl_commands;
mod kube_client;
mod kubernetes;
mod lifecycle;
mod load_balancer_services;
mod load_balancers;
mod login;
mod main_job;
mod materia_etcd;
mod money;
mod nodegroup_resource;
mod options;
mod persistent_storage;
mod readme;
mod rejections;
mod scenarios;
mod server_side_apply;
mod sharing;
mod simulation;
mod specification;
mod topologies;
mod transport;
mod workload_sets;
mod workloads;
mod world;
