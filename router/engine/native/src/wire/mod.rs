//! Headers and bytes: what router/wire does, with the same answers to the last bit. Pure, no system calls.

pub mod bpf;
pub mod flow;
pub mod fragment;
pub mod geneve;
pub mod merge;
pub mod packet;
pub mod probe;
pub mod question;
pub mod shape;
pub mod split;
