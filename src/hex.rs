//! BSON bytes inside JSON state files, as hexadecimal text.

use bson::RawDocumentBuf;
use serde::{Deserialize, Deserializer, Serializer, de, ser};

/// Writes a document's bytes.
///
/// # Errors
/// The serializer's own.
pub(crate) fn serialize<S: Serializer>(
    document: &Option<RawDocumentBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match document {
        Some(document) => serializer.serialize_some(&encode(document.as_bytes())),
        None => serializer.serialize_none(),
    }
}

/// Reads a document's bytes.
///
/// # Errors
/// The text is not hexadecimal, or the bytes are not a document.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<RawDocumentBuf>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let bytes = decode(&text).ok_or_else(|| de::Error::custom("bytes are not hexadecimal"))?;
    RawDocumentBuf::from_bytes(bytes).map(Some).map_err(de::Error::custom)
}

/// Writes a control-plane document's bytes.
///
/// # Errors
/// The document cannot be encoded, or the serializer's own.
pub(crate) fn serialize_document<S: Serializer>(
    document: &bson::Document,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(&document.to_vec().map_err(ser::Error::custom)?))
}

/// Reads a control-plane document's bytes.
///
/// # Errors
/// As [`deserialize`].
pub(crate) fn deserialize_document<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<bson::Document, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = decode(&text).ok_or_else(|| de::Error::custom("bytes are not hexadecimal"))?;
    bson::Document::from_reader(bytes.as_slice()).map_err(de::Error::custom)
}

fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect();
    let digits = digits?;
    (digits.len() % 2 == 0).then(|| {
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, d| byte << 4 | d)).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }
    }

    #[test]
    fn refuses_what_is_not_hexadecimal() {
        assert_eq!(decode("0"), None);
        assert_eq!(decode("zz"), None);
    }
}
