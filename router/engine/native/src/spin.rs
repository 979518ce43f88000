//! How long a thread looks for more before it sleeps: a wake-up costs more than some looking, but looking costs a core.
//!
//! It goes on only while it pays: after a look that found nothing for its whole length, or that others wanted the
//! processor for, it sleeps at once, until something comes so soon again that looking would have found it. And it may
//! look only its share of the time.

use std::thread;

use crate::kernel::now_ns;

/// What the settings say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spinning {
    /// Longest look; 0 never looks.
    pub look_ns: u64,
    /// Most of a core that looking may take, in percent.
    pub share_percent: u64,
}

/// What a share is reckoned over; looking that was spared is not saved up for longer.
const WINDOW_NS: u64 = 100_000_000;
/// Who was away so long when it made way was away for somebody's turn: the processor is not idle.
const TURN_NS: u64 = 200_000;
/// How long it does not look on a processor that others want.
const BUSY_NS: u64 = 10_000_000;

pub struct Spin {
    settings: Spinning,
    /// When something came last.
    came_ns: u64,
    /// Looking at present, since.
    looking_since_ns: Option<u64>,
    window_since_ns: u64,
    spent_ns: u64,
    pays: bool,
    busy_until_ns: u64,
}

impl Spin {
    pub fn new(settings: Spinning) -> Self {
        let (window_since_ns, came_ns) = (now_ns(), 0);
        Spin { settings, came_ns, looking_since_ns: None, window_since_ns, spent_ns: 0, pays: true, busy_until_ns: 0 }
    }

    /// Tell whether to look without sleeping.
    pub fn goes_on(&mut self) -> bool {
        if self.settings.look_ns == 0 {
            return false;
        }
        let now = now_ns();
        if let Some(since) = self.looking_since_ns.take() {
            self.spent_ns += now - since;
        }
        if now - self.window_since_ns > WINDOW_NS {
            (self.window_since_ns, self.spent_ns) = (now, 0);
        }
        if now - self.came_ns >= self.settings.look_ns {
            self.pays = false;
        }
        let spared = self.spent_ns < WINDOW_NS * self.settings.share_percent / 100;
        let goes_on = self.pays && spared && now >= self.busy_until_ns;
        self.looking_since_ns = goes_on.then_some(now);
        goes_on
    }

    /// Nothing came: let others have the processor who want it.
    pub fn make_way(&mut self) {
        let before = now_ns();
        thread::yield_now();
        let now = now_ns();
        if now - before > TURN_NS {
            self.busy_until_ns = now + BUSY_NS;
        }
    }

    /// Note what a look or a sleep has brought.
    pub fn came(&mut self, reads: usize) {
        if self.settings.look_ns == 0 || reads == 0 {
            return;
        }
        let now = now_ns();
        // Twice as long: asleep, one is late by a wake-up.
        self.pays = self.pays || now - self.came_ns < 2 * self.settings.look_ns;
        self.came_ns = now;
    }
}
