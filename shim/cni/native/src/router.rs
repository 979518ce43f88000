//! What a runtime's front-end asks of the router: attach and wait for it, detach whatever happens. As `shim/lean/router.py`.

use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::call::call;
use crate::contract::{AttachRequest, AttachResponse, Attachment, AttachmentKey, DetachRequest, DetachResponse};
use crate::errors::{CniError, IO, RouterError, Status, strerror};
use crate::tombstone::{self, Unwritten};

pub const DEFAULT_SOCKET: &str = "/run/podwire/router.sock";
/// How long a router that restarts is waited for.
pub const WAIT: Duration = Duration::from_secs(5);
const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);
const DETACH_TIMEOUT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// When this process began, which is when its request did: an Attach that began before a Detach is refused, however late.
#[derive(Clone, Copy)]
pub struct Began(u64);

impl Began {
    pub fn now() -> Began {
        let now = clock_gettime(ClockId::Boottime);
        Began(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// Return nanoseconds of CLOCK_BOOTTIME.
    pub fn ns(self) -> u64 {
        self.0
    }
}

/// Give a sandbox an interface, waiting for a router that restarts.
pub fn attach(socket_path: &str, request: &AttachRequest, wait: Duration) -> Result<Attachment, RouterError> {
    let until = Instant::now() + wait;
    loop {
        // Idempotent: one whose answer was lost is asked again.
        match call::<_, AttachResponse>(socket_path, "Attach", request, ATTACH_TIMEOUT) {
            Err(error) if error.status == Status::UNAVAILABLE && Instant::now() < until => sleep(PAUSE),
            answered => return Ok(answered?.attachment.unwrap_or_default()),
        }
    }
}

/// Take an interface away; when no router answers, leave a tombstone for the next.
pub fn detach(socket_path: &str, key: AttachmentKey) -> Result<(), CniError> {
    let request = DetachRequest { key: Some(key.clone()) };
    match call::<_, DetachResponse>(socket_path, "Detach", &request, DETACH_TIMEOUT) {
        Ok(_) => Ok(()),
        Err(error) if error.nobody_answered() => {
            tombstone::leave(socket_path, &key.sandbox_id, &key.if_name).map_err(|Unwritten { path, error }| {
                let path = path.display();
                let why = format!("no router answers, and {path} cannot be written: {}", strerror(&error));
                CniError::new(IO, format!("cannot note the detachment: {why}"))
            })
        }
        Err(error) => Err(error.into()),
    }
}
