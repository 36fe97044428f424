//! Byte sizes and durations as people write them: `"256MiB"`, `"1.5GB"`, `"500ms"`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// A number of bytes. Written `"256MiB"`, `"1.5GB"`, `"4096"` or as a plain integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

const BYTE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim());
        let scale = if unit.is_empty() {
            1
        } else {
            BYTE_UNITS
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(unit))
                .map(|(_, scale)| *scale)
                .ok_or_else(|| {
                    format!("\"{text}\" is not a size: write it as \"256MiB\" or \"1.5GB\"")
                })?
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole
                .checked_mul(scale)
                .map(Self)
                .ok_or_else(|| format!("{text} is too large"));
        }
        let value: f64 = number.parse().map_err(|_| {
            format!("\"{text}\" is not a size: write it as \"256MiB\" or \"1.5GB\"")
        })?;
        Ok(Self((value * scale as f64).round() as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0 as f64;
        match self.0 {
            0..1024 => write!(f, "{} B", self.0),
            1024..1_048_576 => write!(f, "{:.1} KiB", n / 1024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", n / 1_048_576.0),
            1_073_741_824..1_099_511_627_776 => write!(f, "{:.2} GiB", n / 1_073_741_824.0),
            _ => write!(f, "{:.2} TiB", n / 1_099_511_627_776.0),
        }
    }
}

impl Bytes {
    /// Not less, and exact as it is printed: for advice that must work when it is followed.
    #[must_use]
    pub fn rounded_up(self) -> Self {
        let (unit, parts): (u128, u128) = match self.0 {
            0..1024 => return self,
            1024..1_048_576 => (1 << 10, 10),
            1_048_576..1_073_741_824 => (1 << 20, 10),
            1_073_741_824..1_099_511_627_776 => (1 << 30, 100),
            _ => (1 << 40, 100),
        };
        let steps = (u128::from(self.0) * parts).div_ceil(unit);
        Self(u64::try_from((steps * unit).div_ceil(parts)).unwrap_or(u64::MAX))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        for (name, scale) in
            [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        {
            if self.0 != 0 && self.0.is_multiple_of(scale) {
                return s.serialize_str(&format!("{}{name}", self.0 / scale));
            }
        }
        s.serialize_str(&format!("{}B", self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"256MiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Bytes, E> {
                u64::try_from(n).map(Bytes).map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Bytes, E> {
                Ok(Bytes(n))
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size in bytes, as \"256MiB\", \"1.5GB\" or a plain number.",
            "type": ["string", "integer"],
            "format": "bytes",
        })
    }
}

/// A duration. Written `"500ms"`, `"2s"`, `"10m"`, `"1h"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(pub std::time::Duration);

const TIME_UNITS: [(&str, f64); 6] =
    [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];

impl FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("\"{text}\" is not a duration: write it as \"500ms\", \"2s\" or \"10m\"");
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(bad)?;
        let value: f64 = trimmed[..split].parse().map_err(|_| bad())?;
        let unit = trimmed[split..].trim();
        let scale = TIME_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
        std::time::Duration::try_from_secs_f64(value * scale).map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs_f64();
        if s < 1e-3 {
            write!(f, "{:.0} us", s * 1e6)
        } else if s < 1.0 {
            write!(f, "{:.1} ms", s * 1e3)
        } else if s < 120.0 {
            write!(f, "{s:.2} s")
        } else {
            write!(f, "{:.0} min", s / 60.0)
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let us = self.0.as_micros();
        let text = match us {
            us if us % 1_000_000 == 0 => format!("{}s", us / 1_000_000),
            us if us % 1_000 == 0 => format!("{}ms", us / 1_000),
            us => format!("{us}us"),
        };
        s.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A duration, as \"500ms\", \"2s\" or \"10m\".",
            "type": "string",
            "format": "duration",
        })
    }
}

/// Rounds `n` up to a multiple of `to` (a power of two or not).
pub const fn round_up(n: u64, to: u64) -> u64 {
    n.div_ceil(to) * to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_not_less_than_needed() {
        for bytes in (0..3_000_000_000_000u64).step_by(7_777_777_777).chain(1020..5000) {
            let advice = Bytes(bytes).rounded_up();
            let read: Bytes = advice.to_string().parse().unwrap();
            assert!(read.0 >= bytes && read.0 <= bytes + bytes / 10, "{bytes} {advice}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!("256MiB".parse(), Ok(Bytes(256 << 20)));
        assert_eq!("1.5 GB".parse(), Ok(Bytes(1_500_000_000)));
        assert_eq!("7".parse(), Ok(Bytes(7)));
        assert!("12 parsecs".parse::<Bytes>().is_err());
        assert_eq!(serde_json::to_string(&Bytes(3 << 20)).unwrap(), "\"3MiB\"");
        assert_eq!(serde_json::from_str::<Bytes>("\"3MiB\"").unwrap(), Bytes(3 << 20));
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!("500ms".parse(), Ok(Duration(std::time::Duration::from_millis(500))));
        assert!("500".parse::<Duration>().is_err());
    }
}
