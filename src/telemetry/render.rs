//! A record as a line of text or of JSON. Pure.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::events::DELTA_TARGET;
use super::journal::MESSAGE_ID;
use super::record::{FieldValue, Record};

/// `2026-01-26T03:00:00.000Z INFO message key=value`, and for a delta the bare message. The kind of an event is for the
/// journal and for JSON.
pub(super) fn text_line(record: &Record) -> String {
    let message = one_line(record.message());
    if record.metadata.target() == DELTA_TARGET {
        return message + "\n";
    }
    let mut line = format!("{} {} {message}", record.at, record.metadata.level());
    for (name, value) in record.details().filter(|(name, _)| *name != MESSAGE_ID) {
        line.push(' ');
        line.push_str(name);
        line.push('=');
        match value {
            FieldValue::Text(text) if needs_quotes(text) => line.push_str(&quoted(text)),
            value => line.push_str(&plain(value)),
        }
    }
    line.push('\n');
    line
}

/// One JSON object: `time`, `level`, `message`, `target`, and the fields by their names.
pub(super) fn json_line(record: &Record) -> String {
    let mut object = Map::new();
    for (name, value) in record.details() {
        object.insert(name.to_owned(), json_value(value));
    }
    // After the fields, so that none of them can pose as one of these.
    object.insert("time".to_owned(), Value::from(record.at.to_string()));
    object.insert("level".to_owned(), Value::from(record.metadata.level().as_str()));
    object.insert("message".to_owned(), Value::from(record.message()));
    object.insert("target".to_owned(), Value::from(record.metadata.target()));
    Value::Object(object).to_string() + "\n"
}

pub(super) fn plain(value: &FieldValue) -> String {
    match value {
        FieldValue::Bool(value) => value.to_string(),
        FieldValue::Signed(value) => value.to_string(),
        FieldValue::Unsigned(value) => value.to_string(),
        FieldValue::Float(value) => value.to_string(),
        FieldValue::Text(value) => value.clone(),
    }
}

fn json_value(value: &FieldValue) -> Value {
    match value {
        FieldValue::Bool(value) => Value::from(*value),
        FieldValue::Signed(value) => Value::from(*value),
        FieldValue::Unsigned(value) => Value::from(*value),
        FieldValue::Float(value) => Value::from(*value),
        FieldValue::Text(value) => Value::from(value.as_str()),
    }
}

fn needs_quotes(text: &str) -> bool {
    text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"')
}

/// As a string of JSON, which everybody can read back.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Hides, in each line, everything between the scheme of the first URI and the last @: no user or host name is needed
/// to find out what was meant, and what is hidden too much does no harm.
pub(crate) fn without_credentials(text: &str) -> String {
    let hide = |line: &str| match (line.find("://"), line.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            format!("{}://***{}", &line[..scheme], &line[at..])
        }
        _ => line.to_owned(),
    };
    text.split_inclusive('\n').map(hide).collect()
}

/// A text in which nothing can end the line or move the cursor of a terminal: control characters are written out, such
/// as `\n`. Names of collections may hold any of them.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            // Writing to a string cannot fail.
            if write!(line, "{}", c.escape_default()).is_err() {
                break;
            }
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_quoted_arguments_are_hidden() {
        let text = "error: unexpected argument 'mongodb://u:a b://c@d@h/' found\n\nUsage: snapsync <X@Y>\n";
        let hidden =
            "error: unexpected argument 'mongodb://***@h/' found\n\nUsage: snapsync <X@Y>\n";
        assert_eq!(without_credentials(text), hidden);
        assert_eq!(without_credentials("a@b mongodb://h\n"), "a@b mongodb://h\n");
    }
}
