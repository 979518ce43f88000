//! Headers and bytes: what router/wire does, with the same answers to the last bit. Pure, no system calls.

pub mod fragment;
pub mod geneve;
pub mod merge;
pub mod packet;
pub mod probe;
pub mod shape;
pub mod split;
