//! Sizes, durations and addresses as people write them: "10GiB", "500ms", "127.0.0.1:7411".

use kiln_types::{Error, Result};
use std::net::SocketAddr;
use std::time::Duration;

const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

const DURATIONS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Reads a number of bytes such as `10GiB`, `1.5TiB`, `500MB` or `4096`.
///
/// # Errors
/// `Invalid`, with the units that are known.
pub fn parse_size(text: &str) -> Result<u64> {
    parse(text, &SIZES, Some(1)).ok_or_else(|| {
        Error::invalid(format!(
            "'{text}' is not a size: write a number and B, KiB, MiB, GiB, TiB, KB, MB, GB or TB"
        ))
    })
}

/// Writes a number of bytes so that [`parse_size`] reads the same number.
pub fn format_size(bytes: u64) -> String {
    let exact = |unit: u64| bytes >= unit && bytes.is_multiple_of(unit);
    let (name, unit) =
        SIZES[..4].iter().find(|(_, unit)| exact(*unit)).copied().unwrap_or(("B", 1));
    format!("{}{name}", bytes / unit)
}

/// Reads a duration such as `500ms`, `5s` or `1.5h`.
///
/// # Errors
/// `Invalid`, with the units that are known.
pub fn parse_duration(text: &str) -> Result<Duration> {
    parse(text, &DURATIONS, None).map(Duration::from_nanos).ok_or_else(|| {
        Error::invalid(format!(
            "'{text}' is not a duration: write a number and ns, us, ms, s, m, h or d"
        ))
    })
}

/// Writes a duration so that [`parse_duration`] reads the same one.
pub fn format_duration(duration: Duration) -> String {
    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let exact = |unit: u64| nanos >= unit && nanos.is_multiple_of(unit);
    match DURATIONS.iter().rev().find(|(_, unit)| exact(*unit)) {
        Some((name, unit)) => format!("{}{name}", nanos / unit),
        None => "0s".into(),
    }
}

/// Reads an address and a port; the empty text is `None`.
///
/// # Errors
/// `Invalid`, with an example.
pub fn parse_address(text: &str) -> Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Error::invalid(format!("'{text}' is not an address and a port, such as 127.0.0.1:0"))
    })
}

/// Writes what [`parse_address`] reads.
pub fn format_address(address: Option<SocketAddr>) -> String {
    address.map(|address| address.to_string()).unwrap_or_default()
}

/// Digits, perhaps with a fraction, then a unit; `bare` is the unit of a number without one.
fn parse(text: &str, units: &[(&str, u64)], bare: Option<u64>) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, name) = (&text[..end], text[end..].trim_start());
    let unit = match name {
        "" => bare?,
        _ => units.iter().find(|(known, _)| *known == name)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().ok()?;
    if fraction.len() > 9 {
        return None;
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / scale;
    whole.checked_mul(unit)?.checked_add(u64::try_from(part).ok()?)
}

macro_rules! serde_as_text {
    ($module:ident, $type:ty, $format:path, $parse:path, $expected:literal) => {
        /// For `#[serde(with = ..)]`: the value as people write it.
        pub mod $module {
            /// Writes it as a string.
            ///
            /// # Errors
            /// The serializer's.
            pub fn serialize<S: serde::Serializer>(
                value: &$type,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&$format(*value))
            }

            /// Reads it from a string.
            ///
            /// # Errors
            /// When the string is not one.
            pub fn deserialize<'de, D: serde::Deserializer<'de>>(
                deserializer: D,
            ) -> Result<$type, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expected)
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        $parse(text).map_err(|error| E::custom(error.message()))
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    };
}

serde_as_text!(
    size,
    u64,
    crate::human::format_size,
    crate::human::parse_size,
    "a size in quotes, such as \"10GiB\""
);
serde_as_text!(
    duration,
    std::time::Duration,
    crate::human::format_duration,
    crate::human::parse_duration,
    "a duration in quotes, such as \"500ms\""
);
serde_as_text!(
    address,
    Option<std::net::SocketAddr>,
    crate::human::format_address,
    crate::human::parse_address,
    "an address and a port in quotes, such as \"127.0.0.1:0\", or \"\""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_come_back() {
        for bytes in [0, 1, 4096, 4097, 10 << 30, 3 << 40, 1_000_000, u64::MAX] {
            assert_eq!(parse_size(&format_size(bytes)).ok(), Some(bytes));
        }
        for nanos in [0, 1, 999, 500_000_000, 5_000_000_000, 90_000_000_000, 86_400_000_000_000] {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(parse_duration(&format_duration(duration)).ok(), Some(duration));
        }
        assert_eq!(format_size(64 << 30), "64GiB");
        assert_eq!(format_duration(Duration::from_millis(500)), "500ms");
    }

    #[test]
    fn what_people_write_is_understood_or_refused() {
        assert_eq!(parse_size("1.5 GiB").ok(), Some(3 << 29));
        assert_eq!(parse_size("4096").ok(), Some(4096));
        assert_eq!(parse_size("2MB").ok(), Some(2_000_000));
        for wrong in ["", "GiB", "10G", "-1GiB", "1.2.3MiB", "1e9", "20000000TiB", "10 gib"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_duration("1.5s").ok(), Some(Duration::from_millis(1500)));
        for wrong in ["", "5", "s", "5 seconds", "1h30m"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
