//! How busy a thread is, and what follows for its wake-ups: in bulk traffic they wait until who runs has used up its turn,
//! so that more is waiting by then; a lone packet is looked after at once.

use crate::kernel::{let_others_finish, now_ns};

const WINDOW_NS: u64 = 5_000_000;
/// From so much a window on it is bulk: 40,000 frames, or 100 MB, a second.
const BULK_READS: usize = 200;
const BULK_BYTES: u64 = 500_000;

/// What one thread has done of late.
#[derive(Default)]
pub struct Load {
    since_ns: u64,
    reads: usize,
    bytes: u64,
    bulk: bool,
}

impl Load {
    /// Note what the thread has done, and that it has moved so many bytes in all.
    pub fn note(&mut self, reads: usize, bytes: u64) {
        self.reads += reads;
        let now = now_ns();
        if now - self.since_ns < WINDOW_NS {
            return;
        }
        // A window that lasted longer, as the thread slept, had less in it than these say.
        let bulk = self.reads >= BULK_READS || bytes - self.bytes >= BULK_BYTES;
        let bulk = bulk && now - self.since_ns < 4 * WINDOW_NS;
        if bulk != self.bulk {
            self.bulk = bulk;
            let_others_finish(bulk);
        }
        (self.since_ns, self.reads, self.bytes) = (now, 0, bytes);
    }
}
