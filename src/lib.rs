//! Clever Kubernetes Engine, whole and local. The layers, top to bottom: each knows only those below it.

pub mod config;
pub mod health;
pub mod invoice;
pub mod price;
pub mod serve;
pub mod sim;

pub mod clever;

pub mod platform;

pub mod kubernetes;

pub mod infra;

pub mod leader;

pub mod etcd;

pub mod clock;
