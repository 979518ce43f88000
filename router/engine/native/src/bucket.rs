//! A token bucket in bytes, which may fall into debt (router/engine/bucket.py). Time is an argument, in seconds.

use crate::model::Limit;

#[derive(Debug)]
pub struct Bucket {
    per_s: f64,
    burst: f64,
    tokens: f64,
    counted_s: f64,
}

impl Bucket {
    /// Begin full.
    pub fn new(limit: Limit, now_s: f64) -> Self {
        let burst = limit.burst_bytes as f64;
        Bucket { per_s: limit.bytes_per_s as f64, burst, tokens: burst, counted_s: now_s }
    }

    /// Return how many bytes may pass; less than one when nothing may.
    pub fn tokens(&mut self, now_s: f64) -> f64 {
        if now_s > self.counted_s {
            self.tokens = self.burst.min(self.tokens + (now_s - self.counted_s) * self.per_s);
            self.counted_s = now_s;
        }
        self.tokens.trunc()
    }

    pub fn take(&mut self, size: u64) {
        self.tokens -= size as f64;
    }

    /// Take the bytes of a frame, or return false when there are no tokens at all.
    pub fn admit(&mut self, size: u64, now_s: f64) -> bool {
        let may = self.tokens(now_s) >= 1.0;
        if may {
            self.take(size);
        }
        may
    }

    /// Return the seconds from the last count until a byte may pass again.
    pub fn wait_s(&self) -> f64 {
        ((1.0 - self.tokens) / self.per_s).max(0.0)
    }
}
