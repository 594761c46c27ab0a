//! One value: as a layer gives it ([`Raw`]), and checked against its key ([`Value`]).

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::{SignedDuration, Span, SpanRelativeTo};
use toml::de::DeValue;

use super::error::Problem;
use super::keys::Kind;
use super::secret::{HIDDEN, Secret, Uri, redact};
use crate::selection::RenameRule;

/// A value as a layer gives it, before anybody asked whether it fits its key.
#[derive(Clone)]
pub(super) enum Raw {
    Text(String),
    Bool(bool),
    Integer(i64),
    Fraction(f64),
    List(Vec<Raw>),
    Table(BTreeMap<String, Raw>),
    /// A date, or a number beyond 64 bits: no key takes one.
    Other(&'static str),
}

impl From<&DeValue<'_>> for Raw {
    fn from(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Boolean(value) => Self::Bool(*value),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Self::Other("a number beyond 64 bits"), Self::Integer),
            DeValue::Float(number) => {
                number.as_str().parse().map_or(Self::Other("a number"), Self::Fraction)
            }
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Array(items) => {
                Self::List(items.iter().map(|item| Self::from(item.get_ref())).collect())
            }
            DeValue::Table(table) => {
                let entry = |(key, value): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
                    let key: &std::borrow::Cow<'_, str> = key.get_ref();
                    (key.to_string(), Self::from(value.get_ref()))
                };
                Self::Table(table.iter().map(entry).collect())
            }
        }
    }
}

impl Raw {
    /// A text from the environment or a flag, which have no types of their own, read as its key wants it. What cannot
    /// be read so stays a text, and [`Value::parse`] then says what was wanted.
    ///
    /// Only the kind decides how: guessing types from the text would turn a password `1e5` into `100000`.
    pub(super) fn from_text(kind: &Kind, text: &str) -> Self {
        let parsed = match kind {
            Kind::Bool => text.trim().parse().ok().map(Self::Bool),
            Kind::Integer { .. } => text.trim().parse().ok().map(Self::Integer),
            Kind::Fraction { .. } => text.trim().parse().ok().map(Self::Fraction),
            Kind::Table => toml_value(text),
            Kind::List | Kind::Renames if text.trim_start().starts_with('[') => toml_value(text),
            Kind::List => Some(Self::List(split_commas(text).map(Self::Text).collect())),
            Kind::Renames => {
                Some(Self::List(split_commas(text).map(|item| rename_shorthand(&item)).collect()))
            }
            _ => None,
        };
        parsed.unwrap_or_else(|| Self::Text(text.to_owned()))
    }

    /// The value for an error message, without secrets.
    fn shown(&self) -> String {
        match self {
            Self::Text(text) => format!("{:?}", show_text(text)),
            Self::Bool(value) => value.to_string(),
            Self::Integer(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a table".to_owned(),
            Self::Other(what) => (*what).to_owned(),
        }
    }
}

/// A text that may be shown: one that looks like a URI goes through the redaction, whatever key it was given for.
/// Of other URLs only plain ones of archives are shown.
pub(super) fn show_text(text: &str) -> String {
    let archive = text.starts_with("file://") || text.starts_with("s3://");
    let plain = !text.contains("://") || (archive && !text.contains(['@', '?']));
    if plain { text.to_owned() } else { redact(text) }
}

fn toml_value(text: &str) -> Option<Raw> {
    DeValue::parse(text.trim()).ok().map(|value| Raw::from(value.get_ref()))
}

fn split_commas(text: &str) -> impl Iterator<Item = String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned)
}

/// `shop=shop_v2`, the short form of `{ from = "shop", to = "shop_v2" }`.
fn rename_shorthand(text: &str) -> Raw {
    let Some((from, to)) = text.split_once('=') else {
        return Raw::Text(text.to_owned());
    };
    let side = |name: &str, text: &str| (name.to_owned(), Raw::Text(text.trim().to_owned()));
    Raw::Table(BTreeMap::from([side("from", from), side("to", to)]))
}

/// A value that fits its key.
#[derive(Clone, PartialEq)]
pub(super) enum Value {
    Uri(Option<Uri>),
    Secret(Secret),
    Text(String),
    Path(Option<PathBuf>),
    Address(Option<SocketAddr>),
    Bool(bool),
    Integer(u64),
    Fraction(f64),
    Duration(Duration),
    Size(u64),
    Choice(&'static str),
    List(Vec<String>),
    Renames(Vec<RenameRule>),
    /// How many entries it has and their hidden text: such tables are about logging in.
    Table(usize, Secret),
}

impl Value {
    /// Checks a value against the kind of its key.
    pub(super) fn parse(kind: &Kind, raw: &Raw) -> Result<Self, Problem> {
        let wrong = || wrong_type(kind, raw);
        match (kind, raw) {
            (Kind::Uri, Raw::Text(text)) if text.is_empty() => Ok(Self::Uri(None)),
            (Kind::Uri, Raw::Text(text)) => Ok(Self::Uri(Some(Uri::parse(text)?))),
            (Kind::Secret, Raw::Text(text)) => Ok(Self::Secret(Secret::new(text))),
            (Kind::Text, Raw::Text(text)) => Ok(Self::Text(text.clone())),
            (Kind::OptionalPath, Raw::Text(text)) if text.is_empty() => Ok(Self::Path(None)),
            (Kind::Path | Kind::OptionalPath, Raw::Text(text)) => {
                let path = PathBuf::from(text);
                if path.is_absolute() { Ok(Self::Path(Some(path))) } else { Err(wrong()) }
            }
            (Kind::OptionalAddress, Raw::Text(text)) if text.is_empty() => Ok(Self::Address(None)),
            (Kind::OptionalAddress, Raw::Text(text)) => {
                text.parse().map(|address| Self::Address(Some(address))).map_err(|_| wrong())
            }
            (Kind::Bool, Raw::Bool(value)) => Ok(Self::Bool(*value)),
            (Kind::Integer { min, max }, Raw::Integer(number)) => {
                let fits = u64::try_from(*number).ok().filter(|n| (*min..=*max).contains(n));
                fits.map(Self::Integer).ok_or_else(|| out_of_range(kind, number.to_string()))
            }
            (Kind::Fraction { .. }, Raw::Integer(_) | Raw::Fraction(_)) => fraction(kind, raw),
            (Kind::Duration { .. }, Raw::Text(text)) => {
                duration(kind, text).unwrap_or_else(|| Err(wrong()))
            }
            (Kind::Size { .. }, Raw::Text(text)) => match text.trim().parse::<ByteSize>() {
                Ok(bytes) => size(kind, bytes.as_u64()),
                Err(_) => Err(wrong()),
            },
            (Kind::Size { .. }, Raw::Integer(bytes)) => match u64::try_from(*bytes) {
                Ok(bytes) => size(kind, bytes),
                Err(_) => Err(out_of_range(kind, bytes.to_string())),
            },
            (Kind::Choice(words), Raw::Text(text)) => words
                .iter()
                .find(|word| *word == text)
                .map(|word| Self::Choice(word))
                .ok_or_else(wrong),
            (Kind::List, Raw::List(items)) => {
                items.iter().map(text_of).collect::<Option<_>>().map(Self::List).ok_or_else(wrong)
            }
            (Kind::Renames, Raw::List(items)) => items
                .iter()
                .map(rename_of)
                .collect::<Option<_>>()
                .map(Self::Renames)
                .ok_or_else(wrong),
            (Kind::Table, Raw::Table(entries)) => Ok(table(entries)),
            _ => Err(wrong()),
        }
    }

    /// The value for people, without secrets, spelled as the configuration would.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Uri(uri) => uri.as_ref().map_or(String::new(), ToString::to_string),
            Self::Secret(secret) if secret.expose().is_empty() => String::new(),
            Self::Secret(_) => HIDDEN.to_owned(),
            Self::Text(text) => show_text(text),
            Self::Path(path) => {
                path.as_ref().map_or(String::new(), |path| path.display().to_string())
            }
            Self::Address(address) => address.map_or(String::new(), |address| address.to_string()),
            Self::Bool(value) => value.to_string(),
            Self::Integer(number) => number.to_string(),
            Self::Fraction(number) => format!("{number:?}"),
            Self::Duration(duration) => show_duration(*duration),
            Self::Size(bytes) => show_bytes(*bytes),
            Self::Choice(word) => (*word).to_owned(),
            Self::List(items) => {
                let items: Vec<_> =
                    items.iter().map(|text| format!("{:?}", show_text(text))).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Renames(rules) => {
                let rule =
                    |rule: &RenameRule| format!("{{ from = {:?}, to = {:?} }}", rule.from, rule.to);
                format!("[{}]", rules.iter().map(rule).collect::<Vec<_>>().join(", "))
            }
            Self::Table(0, _) => "{}".to_owned(),
            Self::Table(..) => HIDDEN.to_owned(),
        }
    }
}

impl fmt::Debug for Value {
    /// As it is shown, because a list or a text may hold a secret too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

fn text_of(raw: &Raw) -> Option<String> {
    if let Raw::Text(text) = raw { Some(text.clone()) } else { None }
}

fn rename_of(raw: &Raw) -> Option<RenameRule> {
    let Raw::Table(entries) = raw else { return None };
    if entries.len() != 2 {
        return None;
    }
    Some(RenameRule { from: text_of(entries.get("from")?)?, to: text_of(entries.get("to")?)? })
}

fn table(entries: &BTreeMap<String, Raw>) -> Value {
    fn text(raw: &Raw) -> String {
        match raw {
            Raw::List(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
            Raw::Table(entries) => {
                entries.iter().map(|(key, raw)| format!("{key:?}={}", text(raw))).collect()
            }
            // Only ever compared with another such text, never shown.
            Raw::Text(text) => format!("{text:?}"),
            other => other.shown(),
        }
    }
    Value::Table(entries.len(), Secret::new(text(&Raw::Table(entries.clone()))))
}

fn fraction(kind: &Kind, raw: &Raw) -> Result<Value, Problem> {
    let number = match raw {
        #[expect(
            clippy::cast_precision_loss,
            reason = "far beyond any range, as is what it rounds to"
        )]
        Raw::Integer(number) => *number as f64,
        Raw::Fraction(number) => *number,
        _ => return Err(wrong_type(kind, raw)),
    };
    match kind {
        Kind::Fraction { min, max } if (*min..=*max).contains(&number) => {
            Ok(Value::Fraction(number))
        }
        _ => Err(out_of_range(kind, number.to_string())),
    }
}

/// A length of time with its unit, such as `10m`; `None` if it is none. Days are 24 hours; months and years have no
/// length and are refused.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    Duration::try_from(signed_duration(text)?).ok()
}

fn signed_duration(text: &str) -> Option<SignedDuration> {
    let span: Span = text.trim().parse().ok()?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()
}

/// `None` if it is no duration at all.
fn duration(kind: &Kind, text: &str) -> Option<Result<Value, Problem>> {
    let signed = signed_duration(text)?;
    let fits = Duration::try_from(signed).ok().filter(|duration| match kind {
        Kind::Duration { min, max } => (*min..=*max).contains(duration),
        _ => false,
    });
    Some(
        fits.map(Value::Duration)
            .ok_or_else(|| out_of_range(kind, format!("{:?}", show_text(text)))),
    )
}

fn size(kind: &Kind, bytes: u64) -> Result<Value, Problem> {
    match kind {
        Kind::Size { zero: Some(_), .. } if bytes == 0 => Ok(Value::Size(0)),
        Kind::Size { min, max, .. } if (*min..=*max).contains(&bytes) => Ok(Value::Size(bytes)),
        _ => Err(out_of_range(kind, show_bytes(bytes))),
    }
}

fn out_of_range(kind: &Kind, found: String) -> Problem {
    Problem::OutOfRange { found, range: kind.describe().1 }
}

fn wrong_type(kind: &Kind, raw: &Raw) -> Problem {
    let wanted = match kind {
        Kind::Uri | Kind::Secret | Kind::Text => "a text in quotes".to_owned(),
        Kind::Path | Kind::OptionalPath => {
            "an absolute path in quotes, such as \"/run/x\"".to_owned()
        }
        Kind::OptionalAddress => "an IP address and port, such as \"127.0.0.1:2727\"".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Integer { .. } => format!("a whole number, {}", kind.describe().1),
        Kind::Fraction { .. } => format!("a number, {}", kind.describe().1),
        Kind::Duration { .. } => {
            "a duration with its unit, such as \"10s\", \"500ms\" or \"7d\"".to_owned()
        }
        Kind::Size { .. } => "a size, such as \"64MiB\" or \"0\"".to_owned(),
        Kind::Choice(words) => format!("one of {}", words.join(", ")),
        Kind::List => "a list of texts, such as [\"shop\", \"crm.*\"]".to_owned(),
        Kind::Renames => {
            "a list of renames, such as [{ from = \"shop\", to = \"shop_v2\" }]".to_owned()
        }
        Kind::Table => "a table, such as { \"s3://bucket\" = { profile = \"backup\" } }".to_owned(),
    };
    let secret = matches!(kind, Kind::Uri | Kind::Secret | Kind::Table);
    let found = if secret { "the value".to_owned() } else { raw.shown() };
    Problem::WrongType { found, wanted }
}

/// A size in the largest binary unit that leaves no rest: `64MiB`, `1000`, `0`.
pub(super) fn show_bytes(bytes: u64) -> String {
    let units = [("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let whole = |(_, shift): &&(&str, u32)| bytes > 0 && bytes.is_multiple_of(1 << shift);
    match units.iter().find(whole) {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// A duration in the largest unit up to days that leaves no rest: `10s`, `7d`, `1500ms`.
pub(super) fn show_duration(duration: Duration) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let millis = duration.as_millis();
    if duration.is_zero() {
        return "0s".to_owned();
    }
    match units.iter().find(|(_, unit)| millis.is_multiple_of(*unit)) {
        Some((name, unit)) if duration.subsec_nanos().is_multiple_of(1_000_000) => {
            format!("{}{name}", millis / unit)
        }
        _ => {
            SignedDuration::try_from(duration).map_or(format!("{duration:?}"), |d| format!("{d:#}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys::{KEYS, find};
    use proptest::prelude::*;

    fn parse(key: &str, text: &str) -> Result<Value, Problem> {
        let kind = &find(key).unwrap().kind;
        Value::parse(kind, &Raw::from_text(kind, text))
    }

    #[test]
    fn every_default_fits_its_own_key() {
        for key in KEYS {
            let value = Value::parse(&key.kind, &Raw::from_text(&key.kind, key.default));
            assert!(value.is_ok(), "{}: {value:?}", key.name);
        }
    }

    #[test]
    fn reads_durations() {
        let window = |text| parse("archive.retention.keep", text);
        for (text, seconds) in
            [("7d", 604_800), ("2 days", 172_800), ("1h30m", 5400), ("PT5M", 300), ("P1D", 86_400)]
        {
            assert_eq!(window(text), Ok(Value::Duration(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!(parse("live.max_lag", "500ms"), Ok(Value::Duration(Duration::from_millis(500))));
        for text in ["90", "", "soon", "1 month", "1y"] {
            assert!(matches!(window(text), Err(Problem::WrongType { .. })), "{text}");
        }
        for text in ["1s", "-1d", "1d ago", "101000d"] {
            assert!(matches!(window(text), Err(Problem::OutOfRange { .. })), "{text}");
        }
    }

    #[test]
    fn reads_sizes() {
        let memory = |text| parse("memory.max_bytes", text);
        assert_eq!(memory("64MiB"), Ok(Value::Size(64 << 20)));
        assert_eq!(memory("100 MB"), Ok(Value::Size(100_000_000)));
        assert_eq!(memory("1.5GiB"), Ok(Value::Size(3 << 29)));
        assert_eq!(parse("spool.max_bytes", "0"), Ok(Value::Size(0)));
        for text in ["much", "", "-1", "1e9", "64MiBs"] {
            assert!(matches!(memory(text), Err(Problem::WrongType { .. })), "{text}");
        }
        for text in ["0", "1MiB", "2TiB", "99999999999999999999999PiB"] {
            assert!(matches!(memory(text), Err(Problem::OutOfRange { .. })), "{text}");
        }
    }

    #[test]
    fn reads_lists_and_renames_from_text() {
        let list =
            |items: &[&str]| Ok(Value::List(items.iter().map(|i| (*i).to_owned()).collect()));
        assert_eq!(parse("sync.exclude", ""), list(&[]));
        assert_eq!(parse("sync.exclude", "a, b.*"), list(&["a", "b.*"]));
        assert_eq!(parse("sync.exclude", r#"["a,b", 'c']"#), list(&["a,b", "c"]));
        let rule = |from: &str, to: &str| RenameRule { from: from.into(), to: to.into() };
        let rules = Ok(Value::Renames(vec![rule("a", "b"), rule("c.x", "d.y")]));
        assert_eq!(parse("sync.rename", "a=b, c.x=d.y"), rules);
        let toml = r#"[{from = "a", to = "b"}, {to = "d.y", from = "c.x"}]"#;
        assert_eq!(parse("sync.rename", toml), rules);
        for text in ["a", "[1]", "[", r#"[{from = "a"}]"#, r#"[{from = "a", to = "b", x = 1}]"#] {
            assert!(matches!(parse("sync.rename", text), Err(Problem::WrongType { .. })), "{text}");
        }
    }

    #[test]
    fn texts_stay_texts() {
        for text in ["1e5", "0012", "true", "2026-01-01"] {
            assert_eq!(parse("snapshot.source_database", text), Ok(Value::Text(text.to_owned())));
            assert_eq!(parse("archive.notify_url", text), Ok(Value::Secret(Secret::new(text))));
        }
    }

    #[test]
    fn a_secret_in_the_wrong_place_is_not_quoted() {
        for key in
            ["sync.window", "memory.max_bytes", "log.level", "control.listen", "state.directory"]
        {
            let problem = parse(key, "mongodb://u:hunter2@h").unwrap_err();
            assert!(!format!("{problem} {problem:?}").contains("hunter2"), "{problem}");
        }
        let shown = parse("archive.notify_url", "https://x/hunter2").unwrap().shown();
        assert_eq!(shown, "***");
        let shown = parse("archive.credentials", r#"{ x = { key = "hunter2" } }"#).unwrap();
        assert_eq!(shown.shown(), "***");
        assert!(!format!("{shown:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn shown_sizes_and_durations_read_back(bytes in (64u64 << 20)..(1 << 40), ms in 100u64..86_400_000) {
            prop_assert_eq!(parse("memory.max_bytes", &show_bytes(bytes)), Ok(Value::Size(bytes)));
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse("live.max_lag", &show_duration(duration)), Ok(Value::Duration(duration)));
        }
    }
}
