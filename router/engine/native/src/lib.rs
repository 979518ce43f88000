//! The native engine: what router/engine/python.py does, compiled. The same contract (router/engine/interface.py), the
//! same verdicts and bytes; the tests run over both.

pub mod bucket;
pub mod decide;
pub mod drops;
pub mod egress;
pub mod engine;
pub mod exceptions;
pub mod fates;
pub mod forwarder;
pub mod ingress;
pub mod kernel;
pub mod load;
pub mod model;
pub mod runs;
pub mod sender;
pub mod spin;
pub mod table;
pub mod taps;
pub mod view;
pub mod wire;
pub mod worker;

#[cfg(feature = "python")]
mod python;
#[cfg(feature = "python")]
mod rows;
