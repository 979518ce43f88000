//! What a CNI plugin answers when it cannot: a code and words (CNI specification, "Error"). As `shim/cni/errors.py`.

use std::io;

pub const VERSION: u32 = 1;
pub const FIELD: u32 = 2;
pub const UNKNOWN_CONTAINER: u32 = 3;
pub const ENVIRONMENT: u32 = 4;
pub const IO: u32 = 5;
pub const DECODE: u32 = 6;
pub const CONFIG: u32 = 7;
pub const TRY_AGAIN: u32 = 11;
pub const UNAVAILABLE: u32 = 50;
pub const LIMITED: u32 = 51;
/// Our own: the router said no.
pub const REFUSED: u32 = 100;
/// Our own: no address is free.
pub const EXHAUSTED: u32 = 101;
/// Our own: the sandbox was deleted meanwhile.
pub const TOO_LATE: u32 = 102;
/// Our own: CHECK found something missing.
pub const MISSING: u32 = 103;
pub const BUG: u32 = 199;

/// A verb that came to nothing.
#[derive(Debug, PartialEq)]
pub struct CniError {
    pub code: u32,
    pub message: String,
    pub details: String,
}

impl CniError {
    pub fn new(code: u32, message: impl Into<String>) -> CniError {
        CniError { code, message: message.into(), details: String::new() }
    }

    /// Tell the runtime that something in the configuration cannot be.
    pub fn config(message: impl Into<String>) -> CniError {
        CniError::new(CONFIG, message)
    }
}

/// gRPC's status codes by number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status(pub u32);

impl Status {
    pub const UNKNOWN: Status = Status(2);
    pub const INVALID_ARGUMENT: Status = Status(3);
    pub const DEADLINE_EXCEEDED: Status = Status(4);
    pub const NOT_FOUND: Status = Status(5);
    pub const RESOURCE_EXHAUSTED: Status = Status(8);
    pub const FAILED_PRECONDITION: Status = Status(9);
    pub const ABORTED: Status = Status(10);
    pub const INTERNAL: Status = Status(13);
    pub const UNAVAILABLE: Status = Status(14);

    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];

    pub fn name(self) -> &'static str {
        Self::NAMES.get(self.0 as usize).copied().unwrap_or("UNKNOWN")
    }
}

/// A call that failed. The message is one line that says what is wrong and what to do.
#[derive(Debug)]
pub struct RouterError {
    pub status: Status,
    pub message: String,
}

impl RouterError {
    pub fn new(status: Status, message: impl Into<String>) -> RouterError {
        RouterError { status, message: message.into() }
    }

    /// Whether it is the router that was missing, and not the request that was refused.
    pub fn nobody_answered(&self) -> bool {
        matches!(self.status, Status::UNAVAILABLE | Status::DEADLINE_EXCEEDED)
    }
}

impl From<RouterError> for CniError {
    /// Return what a runtime is told of a call that failed.
    fn from(error: RouterError) -> CniError {
        let code = match error.status {
            Status::UNAVAILABLE | Status::DEADLINE_EXCEEDED => TRY_AGAIN,
            Status::INVALID_ARGUMENT => CONFIG,
            Status::NOT_FOUND => UNKNOWN_CONTAINER,
            Status::RESOURCE_EXHAUSTED => EXHAUSTED,
            Status::ABORTED => TOO_LATE,
            Status::INTERNAL => BUG,
            _ => REFUSED,
        };
        CniError { code, message: error.message, details: format!("gRPC status {}", error.status.name()) }
    }
}

/// Return an error in the words of strerror, without Rust's "(os error N)" behind them.
pub fn strerror(error: &io::Error) -> String {
    let words = error.to_string();
    match words.rfind(" (os error ") {
        Some(at) => words[..at].to_owned(),
        None => words,
    }
}
