//! Units in which users write sizes, addresses and times: kept as written, parsed on demand, so that a bad
//! value is a refusal on one object and never an undecodable one.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const KIB: u64 = 1024;
const SUFFIXES: [(&str, u64); 11] = [
    ("Ki", KIB),
    ("Mi", KIB.pow(2)),
    ("Gi", KIB.pow(3)),
    ("Ti", KIB.pow(4)),
    ("Pi", KIB.pow(5)),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("", 1),
];

/// A size that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Not a number followed by a known suffix.
    #[error("\"{0}\" is not a size: write a number with a suffix such as 512Mi or 20Gi")]
    Syntax(String),
    /// More bytes than fit in 64 bits.
    #[error("\"{0}\" is more than 16Ei")]
    TooLarge(String),
}

/// A size in bytes as a Kubernetes quantity, such as `512Mi` or `20Gi`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Size(pub String);

impl Size {
    /// A size of exactly this many bytes, written with the largest binary suffix that divides it.
    pub fn from_bytes(bytes: u64) -> Self {
        let suffix =
            SUFFIXES.iter().take(5).rev().find(|(_, unit)| bytes != 0 && bytes.is_multiple_of(*unit));
        match suffix {
            Some((name, unit)) => Self(format!("{}{name}", bytes / unit)),
            None => Self(bytes.to_string()),
        }
    }

    /// The size in bytes; a fraction of a byte is rounded up.
    pub fn bytes(&self) -> Result<u64, SizeError> {
        let text = self.0.as_str();
        let digits_end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits_end);
        let syntax = || SizeError::Syntax(text.chars().take(40).collect());
        let (_, unit) = SUFFIXES.iter().find(|(name, _)| *name == suffix).ok_or_else(syntax)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 9 {
            return Err(syntax());
        }
        let too_large = || SizeError::TooLarge(text.chars().take(40).collect());
        let parse =
            |part: &str| if part.is_empty() { Ok(0) } else { u128::from_str(part).map_err(|_| too_large()) };
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| syntax())?);
        let total = parse(whole)?
            .checked_mul(scale)
            .and_then(|whole| whole.checked_add(parse(fraction).ok()?))
            .and_then(|scaled| scaled.checked_mul(u128::from(*unit)))
            .ok_or_else(too_large)?;
        u64::try_from(total.div_ceil(scale)).map_err(|_| too_large())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [
                {"rule": "isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))", "message": "must be a size such as 512Mi or 20Gi"},
            ],
        })
    }
}

/// `1.5Gi`-style rendering for people: at most one decimal, binary suffix.
pub fn human_bytes(bytes: u64) -> String {
    let unit = SUFFIXES.iter().take(5).rev().find(|(_, unit)| bytes >= *unit);
    match unit {
        None => bytes.to_string(),
        Some((name, unit)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(*unit);
            if tenths % 10 == 0 {
                format!("{}{name}", tenths / 10)
            } else {
                format!("{}.{}{name}", tenths / 10, tenths % 10)
            }
        }
    }
}

/// An address that is not a MAC.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("\"{0}\" is not a unicast MAC address: write six hexadecimal bytes such as 02:76:00:12:34:56")]
pub struct MacError(String);

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        let [first, ..] = bytes;
        if parts.next().is_some() || first & 1 == 1 || bytes == [0; 6] {
            return Err(error());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Mac {
    /// The address of a NIC that names none: the cluster's three-byte prefix, then three bytes derived from
    /// (VM uid, NIC name). The same VM therefore has the same address wherever and however often it starts.
    pub fn derive(prefix: [u8; 3], vm_uid: &str, nic: &str) -> Self {
        let digest = uuid::Uuid::new_v5(
            &uuid::Uuid::NAMESPACE_OID,
            format!("vireo.dev/mac/{vm_uid}/{nic}").as_bytes(),
        );
        let [x, y, z, ..] = digest.into_bytes();
        let [a, b, c] = prefix;
        Self([a, b, c, x, y, z])
    }

    /// The three-byte prefix a HostCluster names, such as `02:76:00`.
    pub fn parse_prefix(text: &str) -> Result<[u8; 3], MacError> {
        let Mac([a, b, c, ..]) = Mac::from_str(&format!("{text}:00:00:01"))?;
        Ok([a, b, c])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_parse_as_kubernetes_does() {
        for (text, bytes) in
            [("1", 1), ("1Ki", 1024), ("1.5Gi", 1_610_612_736), ("2G", 2_000_000_000), ("64Ti", 64 << 40)]
        {
            assert_eq!(Size(text.into()).bytes(), Ok(bytes), "{text}");
        }
        for text in ["", "12 bananas", "Gi", "-1Gi", "1e3", "1.2.3Gi", ".", "1gi", "\u{661}Gi"] {
            assert!(matches!(Size(text.into()).bytes(), Err(SizeError::Syntax(_))), "{text}");
        }
        assert!(matches!(Size("99999999999999999999Pi".into()).bytes(), Err(SizeError::TooLarge(_))));
    }

    #[test]
    fn people_see_short_sizes() {
        assert_eq!(human_bytes(1_288_490_189), "1.2Gi");
        assert_eq!(human_bytes(4 << 30), "4Gi");
        assert_eq!(human_bytes(0), "0");
    }

    #[test]
    fn mac_addresses_are_unicast() {
        assert!(Mac::from_str("01:00:5e:00:00:01").is_err());
        assert!(Mac::from_str("00:00:00:00:00:00").is_err());
        assert!(Mac::from_str("02:76:00:12:34").is_err());
        assert_eq!(Mac::parse_prefix("02:76:00"), Ok([2, 0x76, 0]));
    }

    proptest! {
        #[test]
        fn any_string_is_read_or_refused(text in ".{0,40}") {
            let _ = Size(text.clone()).bytes();
            let _ = Mac::from_str(&text);
        }

        #[test]
        fn bytes_round_trip(bytes in 1u64..) {
            prop_assert_eq!(Size::from_bytes(bytes).bytes(), Ok(bytes));
        }

        #[test]
        fn mac_round_trips(mut bytes in any::<[u8; 6]>()) {
            bytes[0] &= 0xfe;
            bytes[5] |= 1;
            prop_assert_eq!(Mac::from_str(&Mac(bytes).to_string()), Ok(Mac(bytes)));
        }
    }
}
