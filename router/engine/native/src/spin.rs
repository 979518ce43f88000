//! How long a thread looks for more before it sleeps: a wake-up costs more than some looking, but looking costs a core.
//!
//! It goes on only while it pays: after a stretch of looking that found nothing, it sleeps at once until something comes
//! so soon after it fell asleep that looking would have found it. And it may look only its share of the time.

use crate::kernel::now_ns;

/// What the settings say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spinning {
    /// Longest look; 0 never looks.
    pub look_ns: u64,
    /// Most of a core that looking may take, in percent.
    pub share_percent: u64,
}

/// What a share is reckoned over: looking that was spared is not saved up for longer.
const WINDOW_NS: u64 = 100_000_000;

pub struct Spin {
    settings: Spinning,
    /// Since when nothing has come.
    quiet_since_ns: u64,
    /// Looking at present, since.
    looking_since_ns: Option<u64>,
    window_since_ns: u64,
    spent_ns: u64,
    pays: bool,
}

impl Spin {
    pub fn new(settings: Spinning) -> Self {
        Spin { settings, quiet_since_ns: 0, looking_since_ns: None, window_since_ns: 0, spent_ns: 0, pays: true }
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
            self.window_since_ns = now;
            self.spent_ns = 0;
        }
        let quiet_ns = now - self.quiet_since_ns;
        if quiet_ns >= self.settings.look_ns {
            self.pays = false;
        }
        let goes_on = self.pays && self.spent_ns < WINDOW_NS * self.settings.share_percent / 100;
        if goes_on {
            self.looking_since_ns = Some(now);
        }
        goes_on
    }

    /// Note what a look or a sleep has brought.
    pub fn came(&mut self, reads: usize) {
        if self.settings.look_ns == 0 || reads == 0 {
            return;
        }
        let now = now_ns();
        // Four times as long: asleep, one is late by a wake-up.
        self.pays = self.pays || now - self.quiet_since_ns < 4 * self.settings.look_ns;
        self.quiet_since_ns = now;
        self.looking_since_ns = None;
    }
}
