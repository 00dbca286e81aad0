//! Damage: to bytes, to JSON, to templates.

use serde_json::Value;

/// Random numbers that follow from a seed (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(seed.wrapping_mul(0xd129_0b26_1a3c_5f47) ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 where there is none.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.word() % end as u64) as usize }
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// A number at which sizes and counts break.
    pub fn interesting(&mut self, len: usize) -> u64 {
        let len = len as u64;
        let fixed = [
            0,
            1,
            2,
            3,
            7,
            8,
            31,
            32,
            33,
            255,
            256,
            65_535,
            1 << 20,
            (1 << 31) - 1,
            1 << 31,
            u64::from(u32::MAX),
            1 << 32,
            1 << 40,
            (1 << 61) + 1,
            i64::MAX as u64,
            1 << 63,
            u64::MAX - 7,
            u64::MAX,
            len,
            len.wrapping_sub(1),
            len + 1,
            len / 2,
        ];
        if self.below(8) == 0 { self.word() } else { self.pick(&fixed) }
    }
}

/// Changes some bytes within the first `focus`, where structure stands.
pub fn bytes(file: &mut Vec<u8>, focus: usize, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        let end = if random.below(8) == 0 { file.len() } else { focus.min(file.len()) };
        let at = random.below(end);
        match random.below(8) {
            0 if !file.is_empty() => file[at] ^= 1 << random.below(8),
            1 if !file.is_empty() => file[at] = random.word() as u8,
            2 | 3 => {
                let width = random.pick(&[1, 2, 4, 8, 8]);
                let value = random.interesting(file.len()).to_le_bytes();
                for (byte, value) in file.iter_mut().skip(at).zip(&value[..width]) {
                    *byte = *value;
                }
            }
            4 => file.truncate(at),
            5 => {
                let len = random.below(64).min(file.len() - at);
                file.drain(at..at + len);
            }
            6 => {
                let fresh: Vec<u8> = (0..random.below(32)).map(|_| random.word() as u8).collect();
                file.splice(at..at, fresh);
            }
            _ => {
                let (from, len) = (random.below(file.len()), random.below(128));
                let part: Vec<u8> = file.iter().skip(from).take(len).copied().collect();
                for _ in 0..1 + random.below(8) {
                    file.splice(at..at, part.clone());
                }
            }
        }
    }
}

fn strange(random: &mut Random) -> Value {
    let number = random.interesting(100);
    match random.below(12) {
        0 => Value::Null,
        1 => Value::from(random.below(2) == 0),
        2 => Value::from(number),
        3 => Value::from(-(number as f64)),
        4 => Value::from(1e308),
        5 => Value::from(1e-320),
        6 => Value::from(""),
        7 => Value::from("x".repeat(random.below(3000))),
        8 => Value::from(vec![number; random.below(40)]),
        9 => (0..random.below(120)).fold(Value::Null, |inner, _| Value::from(vec![inner])),
        10 => serde_json::json!({"": {"type": "Regex", "0": number}}),
        _ => Value::from("\u{0}\u{202e}é\\\"\n"),
    }
}

/// Changes some values, keys and lists of a JSON value.
pub fn json(value: &mut Value, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let depth = random.below(8);
        change(value, depth, random);
    }
}

fn change(value: &mut Value, depth: usize, random: &mut Random) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let keys: Vec<String> = fields.keys().cloned().collect();
            let key = random.pick(&keys);
            if depth > 0 && random.below(5) > 0 {
                if let Some(inner) = fields.get_mut(&key) {
                    change(inner, depth - 1, random);
                }
                return;
            }
            match random.below(4) {
                0 => drop(fields.remove(&key)),
                1 => drop(fields.insert(key, strange(random))),
                2 => {
                    let moved = fields.remove(&key).unwrap_or_default();
                    fields.insert(random.pick(&keys), moved);
                }
                _ => drop(fields.insert(format!("{key}é"), strange(random))),
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let at = random.below(items.len());
            if depth > 0 && random.below(5) > 0 {
                return change(&mut items[at], depth - 1, random);
            }
            match random.below(4) {
                0 => drop(items.remove(at)),
                1 => items[at] = strange(random),
                2 => items.insert(at, items[random.below(items.len())].clone()),
                _ => items.truncate(at),
            }
        }
        Value::Number(number) if random.below(3) == 0 => {
            let near = number.as_i64().unwrap_or(0).wrapping_add(random.below(5) as i64 - 2);
            *value = Value::from(near);
        }
        other => *other = strange(random),
    }
}
