//! A log line as a value that can be handed to another thread: what `tracing` lends for the length of one call, kept.

use std::fmt::Debug;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

use crate::status::WallTime;

/// Fields of a record; what an event has beyond is dropped. None of ours comes near.
const FIELDS_MAX: usize = 32;

/// Bytes of one text value; what is beyond is cut. `journalctl -o json` shows nothing at all of longer ones.
const TEXT_BYTES_MAX: usize = 4000;

/// One line for the log.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// When it happened, which may be long before it is written.
    pub(super) at: WallTime,
    /// Level, target and place in the source.
    pub(super) metadata: &'static Metadata<'static>,
    /// The fields, `message` among them, in the order of the source.
    pub(super) fields: Vec<(Field, FieldValue)>,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum FieldValue {
    /// A truth value.
    Bool(bool),
    /// An integer.
    Signed(i64),
    /// An integer.
    Unsigned(u64),
    /// A number.
    Float(f64),
    /// Everything else, as it prints.
    Text(String),
}

impl Record {
    /// Keeps what `event` says.
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut fields = Fields(Vec::with_capacity(8));
        event.record(&mut fields);
        Self { at: WallTime::now(), metadata: event.metadata(), fields: fields.0 }
    }

    /// About how much memory this takes.
    pub(super) fn bytes(&self) -> usize {
        let texts = self.fields.iter().map(|(_, value)| match value {
            FieldValue::Text(text) => text.len(),
            _ => 0,
        });
        size_of::<Self>()
            + self.fields.len() * size_of::<(Field, FieldValue)>()
            + texts.sum::<usize>()
    }

    /// The message, empty when there is none.
    pub(super) fn message(&self) -> &str {
        let message = self.fields.iter().find(|(field, _)| field.name() == "message");
        match message {
            Some((_, FieldValue::Text(text))) => text,
            _ => "",
        }
    }

    /// The fields other than the message.
    pub(super) fn details(&self) -> impl Iterator<Item = (&'static str, &FieldValue)> {
        self.fields
            .iter()
            .map(|(field, value)| (field.name(), value))
            .filter(|(name, _)| *name != "message")
    }
}

/// What `log` logs, instead of having it logged.
pub(super) fn caught(log: impl FnOnce()) -> Vec<Record> {
    #[derive(Clone, Default)]
    struct Catch(Arc<Mutex<Vec<Record>>>);

    impl<S: Subscriber> Layer<S> for Catch {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            records.push(Record::of(event));
        }
    }

    let catch = Catch::default();
    let dispatch = Dispatch::new(Registry::default().with(catch.clone()));
    tracing::dispatcher::with_default(&dispatch, log);
    mem::take(&mut *catch.0.lock().unwrap_or_else(PoisonError::into_inner))
}

struct Fields(Vec<(Field, FieldValue)>);

impl Fields {
    fn keep(&mut self, field: &Field, value: FieldValue) {
        if self.0.len() < FIELDS_MAX {
            self.0.push((field.clone(), value));
        }
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, FieldValue::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, FieldValue::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, FieldValue::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field, FieldValue::Float(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.keep(field, FieldValue::Text(shortened(value.to_owned())));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.keep(field, FieldValue::Text(shortened(format!("{value:?}"))));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        // The causes belong to the line: an error's own message never holds them.
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        self.keep(field, FieldValue::Text(shortened(text)));
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('\u{2026}');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot write the state")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn keeps_values_by_kind_and_errors_with_their_causes() {
        let error = Outer(std::io::Error::other("disk full"));
        let records = caught(|| {
            tracing::info!(
                count = 3_u64,
                delta = -1_i64,
                ratio = 0.5,
                exact = true,
                ns = "shop.orders",
                error = &error as &dyn std::error::Error,
                "counted {}",
                "all"
            );
        });
        let [record] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!(record.message(), "counted all");
        let details: Vec<_> = record.details().map(|(name, value)| (name, value.clone())).collect();
        let text = |text: &str| FieldValue::Text(text.to_owned());
        let expected = [
            ("count", FieldValue::Unsigned(3)),
            ("delta", FieldValue::Signed(-1)),
            ("ratio", FieldValue::Float(0.5)),
            ("exact", FieldValue::Bool(true)),
            ("ns", text("shop.orders")),
            ("error", text("cannot write the state: disk full")),
        ];
        assert_eq!(details, expected);
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = shortened("\u{e9}".repeat(TEXT_BYTES_MAX));
        assert_eq!(text.len(), TEXT_BYTES_MAX + "\u{2026}".len());
        assert!(text.ends_with("\u{e9}\u{2026}"));
        assert_eq!(shortened("short".into()), "short");
    }
}
