//! Longest-prefix match over an immutable table (router/table.py): one level a prefix length, longest first, each a flat
//! array where its prefixes lie close together, else a hash map.

use std::collections::HashMap;

use foldhash::fast::FixedState;

const FLAT_SLOTS_PER_ENTRY: u128 = 8;

/// One prefix: the first bits of `network`, and what it leads to.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub v6: bool,
    pub network: u128,
    pub prefix_bits: u32,
    /// Above 0: 0 is what a look-up returns that finds nothing.
    pub value: u32,
}

enum Keys {
    Flat { lowest: u128, values: Vec<u32> },
    Scattered(HashMap<u128, u32, FixedState>),
}

struct Level {
    shift: u32,
    keys: Keys,
}

impl Level {
    fn new(shift: u32, entries: Vec<(u128, u32)>) -> Self {
        let lowest = entries.iter().map(|entry| entry.0).min().unwrap_or(0);
        let highest = entries.iter().map(|entry| entry.0).max().unwrap_or(0);
        if highest - lowest >= FLAT_SLOTS_PER_ENTRY * entries.len() as u128 {
            return Level { shift, keys: Keys::Scattered(entries.into_iter().collect()) };
        }
        let mut values = vec![0; (highest - lowest) as usize + 1];
        for (key, value) in entries {
            values[(key - lowest) as usize] = value;
        }
        Level { shift, keys: Keys::Flat { lowest, values } }
    }

    fn get(&self, address: u128) -> u32 {
        // A shift by all the bits is the default route's: one key, 0.
        let key = address.checked_shr(self.shift).unwrap_or(0);
        match &self.keys {
            Keys::Flat { lowest, values } => {
                let index = key.wrapping_sub(*lowest);
                if index < values.len() as u128 { values[index as usize] } else { 0 }
            }
            Keys::Scattered(values) => values.get(&key).copied().unwrap_or(0),
        }
    }
}

/// Immutable; a new one replaces it whole.
#[derive(Default)]
pub struct Table {
    v4: Vec<Level>,
    v6: Vec<Level>,
}

impl Table {
    pub fn new(entries: &[Entry]) -> Self {
        let mut by_length: [HashMap<u32, Vec<(u128, u32)>>; 2] = Default::default();
        for entry in entries {
            let shift = if entry.v6 { 128 } else { 32 } - entry.prefix_bits;
            let key = entry.network.checked_shr(shift).unwrap_or(0);
            by_length[usize::from(entry.v6)].entry(shift).or_default().push((key, entry.value));
        }
        let [v4, v6] = by_length.map(|lengths| {
            let mut levels: Vec<_> = lengths.into_iter().map(|(shift, entries)| Level::new(shift, entries)).collect();
            levels.sort_by_key(|level| level.shift);
            levels
        });
        Table { v4, v6 }
    }

    /// Return what the longest prefix leads to that holds the address; 0 where there is none.
    pub fn lookup_v4(&self, address: u32) -> u32 {
        Self::lookup(&self.v4, u128::from(address))
    }

    pub fn lookup_v6(&self, address: u128) -> u32 {
        Self::lookup(&self.v6, address)
    }

    fn lookup(levels: &[Level], address: u128) -> u32 {
        levels.iter().map(|level| level.get(address)).find(|&value| value != 0).unwrap_or(0)
    }
}
