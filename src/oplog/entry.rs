//! One oplog entry: an envelope (when, who, in which session) around an [`Operation`] (what, where).
//!
//! Decoding borrows everything and allocates nothing; it looks at the top level of the entry only.

use bson::{RawDocument, Uuid};

use super::element::{self, Elements, Malformed, Value};
use crate::position::{OpTime, Ts};

/// The version of the oplog's own format that every supported server writes.
const OPLOG_VERSION: i64 = 2;

/// An entry that cannot be understood. Replay must stop here: skipping it would lose data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are no BSON.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A field that every entry of this kind has is not there.
    #[error("the entry has no {field}; this version of snapsync does not know such entries")]
    Missing {
        /// Path of the field in the entry.
        field: &'static str,
    },
    /// A field is there, with a type it never had.
    #[error("{field} of the entry has an unknown type; this version of snapsync does not know it")]
    WrongType {
        /// Path of the field in the entry.
        field: &'static str,
    },
    /// The oplog has another format.
    #[error("oplog format {version} is not known, only format 2 is; use a newer snapsync")]
    OplogVersion {
        /// The entry's `v`.
        version: i64,
    },
    /// A kind of operation that did not exist when this was written.
    #[error("operation {op:?} is not known; use a newer snapsync")]
    UnknownOperation {
        /// The entry's `op`.
        op: String,
    },
    /// An update in a format that did not exist when this was written.
    #[error("update format {version} is not known, only 1 and 2 are; use a newer snapsync")]
    UpdateVersion {
        /// The update's `$v`.
        version: i64,
    },
    /// A way of grouping operations that did not exist when this was written.
    #[error("multiOpType {kind} is not known, only 0 and 1 are; use a newer snapsync")]
    MultiOpType {
        /// The entry's `multiOpType`.
        kind: i64,
    },
    /// A command that has no known effect on the data.
    #[error("command {command:?} is not known; use a newer snapsync, or exclude what it ran on")]
    UnknownCommand {
        /// The command's name.
        command: String,
    },
    /// `applyOps` inside `applyOps` inside ... deeper than any server allows.
    #[error("applyOps is nested more than {limit} deep, deeper than any server allows")]
    TooDeep {
        /// Levels that are followed.
        limit: usize,
    },
}

/// An oplog entry.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Timestamp and term: which entry this is.
    pub op_time: OpTime,
    /// Wall clock of the writer, in milliseconds since 1970. Not monotonic, and never a position.
    pub wall_ms: i64,
    /// Session and transaction number, where the entry has both: a transaction or a retryable write.
    pub session: Option<Session<'a>>,
    /// Timestamp of the entry before this one in the same transaction or retryable write; `None` in the first.
    pub previous: Option<Ts>,
    /// Whether an `applyOps` with a session is a batch of retryable writes, each entry standing for itself, and no
    /// part of a transaction (`multiOpType: 1`, written by servers from 7.0 on).
    pub retryable_batch: bool,
    /// What was done.
    pub operation: Operation<'a>,
}

/// What tells one transaction from all others.
#[derive(Debug, Clone, Copy)]
pub struct Session<'a> {
    /// The whole logical session document: internal sessions differ in other fields than `id`.
    pub lsid: &'a RawDocument,
    /// Number of the transaction or retryable write within the session.
    pub txn_number: i64,
}

/// What was done and where; either an entry's own or one inside an `applyOps`.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    /// Namespace at the time of the operation: `db.collection`, `db.$cmd` for commands, often empty for no-ops.
    pub ns: &'a str,
    /// The collection itself, whatever its name is now. Absent where the server writes none.
    pub ui: Option<Uuid>,
    /// The server hides this from change streams. On a shard that is a migration; on a replica set it is real data.
    pub from_migrate: bool,
    /// An update that makes the document if it is not there: the `applyOps` command does that unless it is told not to.
    pub upsert: bool,
    /// What was done.
    pub kind: Kind<'a>,
}

/// The kinds of operations.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    /// Nothing that changes data, whatever else the entry holds.
    Noop,
    /// A new document.
    Insert {
        /// The document's `_id`.
        id: Value<'a>,
        /// The document.
        doc: &'a RawDocument,
    },
    /// A whole new version of a document.
    Replace {
        /// `_id` of the old version; equal to that of the new one, but its type may differ (1 and 1.0).
        id: Value<'a>,
        /// The new version, with its `_id`.
        doc: &'a RawDocument,
    },
    /// A change of a document in the `$v: 2` format; [`super::diff::apply`] applies it.
    Diff {
        /// The document's `_id`.
        id: Value<'a>,
        /// The diff itself, without `$v`.
        diff: &'a RawDocument,
    },
    /// A change of a document in the old format of update operators (`$v: 1`, or bare `$set` and `$unset`).
    LegacyModify {
        /// The document's `_id`.
        id: Value<'a>,
        /// The operators, with `$v` if there was one.
        modifier: &'a RawDocument,
    },
    /// The end of a document.
    Delete {
        /// The document's `_id`.
        id: Value<'a>,
    },
    /// A command: a transaction's `applyOps` or end, or a change of the catalogue ([`super::command::Ddl`]).
    Command {
        /// The command; its first field is its name.
        o: &'a RawDocument,
        /// What the server noted beside it, such as the specification of a dropped index.
        o2: Option<&'a RawDocument>,
    },
}

impl<'a> Entry<'a> {
    /// Reads an entry of `local.oplog.rs`. Unknown top-level fields are ignored.
    ///
    /// # Errors
    /// [`DecodeError`], for everything that is not known to be safe to replay.
    pub fn decode(entry: &'a RawDocument) -> Result<Self, DecodeError> {
        let fields = Fields::read(entry)?;
        let version = required("v", fields.v, Value::as_i64)?;
        if version != OPLOG_VERSION {
            return Err(DecodeError::OplogVersion { version });
        }
        let retryable_batch = match optional("multiOpType", fields.multi_op_type, Value::as_i64)? {
            None | Some(0) => false,
            Some(1) => true,
            Some(kind) => return Err(DecodeError::MultiOpType { kind }),
        };
        let ts = required("ts", fields.ts, Value::as_ts)?;
        let term = optional("t", fields.t, Value::as_i64)?.unwrap_or(-1);
        let lsid = optional("lsid", fields.lsid, Value::as_document)?;
        let txn_number = optional("txnNumber", fields.txn_number, Value::as_i64)?;
        Ok(Self {
            op_time: OpTime::new(ts, term),
            wall_ms: required("wall", fields.wall, Value::as_date_ms)?,
            session: lsid.zip(txn_number).map(|(lsid, txn_number)| Session { lsid, txn_number }),
            previous: previous(fields.prev_op_time)?,
            retryable_batch,
            operation: fields.operation()?,
        })
    }
}

impl<'a> Operation<'a> {
    /// Reads an operation inside an `applyOps`, which has no timestamp, term or version of its own.
    ///
    /// # Errors
    /// [`DecodeError`], for everything that is not known to be safe to replay.
    pub fn decode(operation: &'a RawDocument) -> Result<Self, DecodeError> {
        Fields::read(operation)?.operation()
    }
}

/// The fields of an entry that matter, found but not yet looked at.
#[derive(Default)]
struct Fields<'a> {
    op: Option<Value<'a>>,
    ns: Option<Value<'a>>,
    ui: Option<Value<'a>>,
    o: Option<Value<'a>>,
    o2: Option<Value<'a>>,
    from_migrate: Option<Value<'a>>,
    ts: Option<Value<'a>>,
    t: Option<Value<'a>>,
    v: Option<Value<'a>>,
    wall: Option<Value<'a>>,
    lsid: Option<Value<'a>>,
    txn_number: Option<Value<'a>>,
    prev_op_time: Option<Value<'a>>,
    multi_op_type: Option<Value<'a>>,
}

impl<'a> Fields<'a> {
    fn read(document: &'a RawDocument) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        for element in Elements::new(document) {
            let element = element?;
            let field = match element.name {
                b"op" => &mut fields.op,
                b"ns" => &mut fields.ns,
                b"ui" => &mut fields.ui,
                b"o" => &mut fields.o,
                b"o2" => &mut fields.o2,
                b"fromMigrate" => &mut fields.from_migrate,
                b"ts" => &mut fields.ts,
                b"t" => &mut fields.t,
                b"v" => &mut fields.v,
                b"wall" => &mut fields.wall,
                b"lsid" => &mut fields.lsid,
                b"txnNumber" => &mut fields.txn_number,
                b"prevOpTime" => &mut fields.prev_op_time,
                b"multiOpType" => &mut fields.multi_op_type,
                _ => continue,
            };
            *field = Some(element.value);
        }
        Ok(fields)
    }

    fn operation(&self) -> Result<Operation<'a>, DecodeError> {
        let op = required("op", self.op, Value::as_str)?;
        if op == "n" {
            // A no-op may carry user documents, or an old entry, in any field: none of them is looked at.
            let ns = self.ns.and_then(Value::as_str).unwrap_or_default();
            let kind = Kind::Noop;
            return Ok(Operation { ns, ui: None, from_migrate: false, upsert: false, kind });
        }
        let o = required("o", self.o, Value::as_document)?;
        let o2 = optional("o2", self.o2, Value::as_document)?;
        let kind = match op {
            "i" => Kind::Insert { id: id("o._id", o)?, doc: o },
            "u" => update(o, o2)?,
            "d" => Kind::Delete { id: id("o._id", o)? },
            "c" => Kind::Command { o, o2 },
            _ => return Err(DecodeError::UnknownOperation { op: op.to_owned() }),
        };
        Ok(Operation {
            ns: required("ns", self.ns, Value::as_str)?,
            ui: optional("ui", self.ui, Value::as_uuid)?,
            from_migrate: optional("fromMigrate", self.from_migrate, Value::as_bool)?
                .unwrap_or_default(),
            upsert: false,
            kind,
        })
    }
}

/// Tells the formats of updates apart as servers do: an `_id` makes it a replacement, whose other fields are all the
/// user's, `$v` and `$set` included.
fn update<'a>(o: &'a RawDocument, o2: Option<&'a RawDocument>) -> Result<Kind<'a>, DecodeError> {
    let query = || id("o2._id", o2.ok_or(DecodeError::Missing { field: "o2" })?);
    let (mut version, mut diff, mut has_operators) = (None, None, false);
    for element in Elements::new(o) {
        let element = element?;
        match element.name {
            b"_id" => {
                let id = if o2.is_some() { query()? } else { element.value };
                return Ok(Kind::Replace { id, doc: o });
            }
            b"$v" => version = Some(element.value),
            b"diff" => diff = Some(element.value),
            name => has_operators |= name.starts_with(b"$"),
        }
    }
    match optional("o.$v", version, Value::as_i64)? {
        Some(2) => {
            let diff = required("o.diff", diff, Value::as_document)?;
            Ok(Kind::Diff { id: query()?, diff })
        }
        Some(1) => Ok(Kind::LegacyModify { id: query()?, modifier: o }),
        Some(version) => Err(DecodeError::UpdateVersion { version }),
        None if has_operators => Ok(Kind::LegacyModify { id: query()?, modifier: o }),
        None => Err(DecodeError::Missing { field: "o._id" }),
    }
}

/// `prevOpTime`, where it names an entry: the first entry of a transaction has a null one.
fn previous(prev_op_time: Option<Value<'_>>) -> Result<Option<Ts>, DecodeError> {
    let Some(document) = optional("prevOpTime", prev_op_time, Value::as_document)? else {
        return Ok(None);
    };
    let ts = required("prevOpTime.ts", element::find(document, b"ts")?, Value::as_ts)?;
    Ok((ts != Ts::ZERO).then_some(ts))
}

fn id<'a>(field: &'static str, document: &'a RawDocument) -> Result<Value<'a>, DecodeError> {
    element::find(document, b"_id")?.ok_or(DecodeError::Missing { field })
}

fn required<'a, T>(
    field: &'static str,
    value: Option<Value<'a>>,
    get: impl FnOnce(Value<'a>) -> Option<T>,
) -> Result<T, DecodeError> {
    optional(field, value, get)?.ok_or(DecodeError::Missing { field })
}

fn optional<'a, T>(
    field: &'static str,
    value: Option<Value<'a>>,
    get: impl FnOnce(Value<'a>) -> Option<T>,
) -> Result<Option<T>, DecodeError> {
    value.map(|value| get(value).ok_or(DecodeError::WrongType { field })).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::fixtures;
    use bson::{DateTime, RawDocumentBuf, Timestamp, rawdoc};
    use proptest::prelude::*;

    /// What an operation is, without what it holds.
    fn name(kind: Kind<'_>) -> &'static str {
        match kind {
            Kind::Noop => "noop",
            Kind::Insert { .. } => "insert",
            Kind::Replace { .. } => "replace",
            Kind::Diff { .. } => "diff",
            Kind::LegacyModify { .. } => "legacy",
            Kind::Delete { .. } => "delete",
            Kind::Command { .. } => "command",
        }
    }

    fn update_kind(o: &RawDocument) -> Result<&'static str, DecodeError> {
        let entry = rawdoc! { "op": "u", "ns": "a.b", "o": o.to_owned(), "o2": { "_id": 1 } };
        Operation::decode(&entry).map(|operation| name(operation.kind))
    }

    fn entry() -> RawDocumentBuf {
        rawdoc! {
            "op": "d", "ns": "a.b", "o": { "_id": 7 }, "ts": Timestamp { time: 5, increment: 6 },
            "t": 3_i64, "v": 2_i64, "wall": DateTime::from_millis(99),
        }
    }

    /// Of two fields of one name the later one counts, so `more` overrides.
    fn entry_with(more: &RawDocument) -> RawDocumentBuf {
        let mut entry = entry();
        for (key, value) in more.iter().map(Result::unwrap) {
            entry.append(key, value);
        }
        entry
    }

    #[test]
    fn every_captured_entry_is_what_its_shape_says() {
        for fixture in fixtures::entries() {
            let entry = Entry::decode(&fixture.document).unwrap();
            let expected = match fixture.op.as_str() {
                "n" => "noop",
                "i" => "insert",
                "d" => "delete",
                "c" => "command",
                "u" if fixture.shape.contains("vrepl") => "replace",
                "u" if fixture.shape.contains(" v2") => "diff",
                other => panic!("{other}"),
            };
            assert_eq!(name(entry.operation.kind), expected, "{}", fixture.shape);
        }
    }

    #[test]
    fn the_envelope_of_every_captured_entry_is_read() {
        for fixture in fixtures::entries() {
            let (entry, json) = (Entry::decode(&fixture.document).unwrap(), &fixture.json);
            let ts = &json["ts"]["$timestamp"];
            assert_eq!(u64::from(entry.op_time.ts.t), ts["t"].as_u64().unwrap());
            assert_eq!(u64::from(entry.op_time.ts.i), ts["i"].as_u64().unwrap());
            let term = json["t"]["$numberLong"].as_str().unwrap_or("-1");
            assert_eq!(entry.op_time.term.to_string(), term);
            let wall = json["wall"]["$date"]["$numberLong"].as_str().unwrap();
            assert_eq!(entry.wall_ms.to_string(), wall);
            assert_eq!(entry.operation.ns, json["ns"].as_str().unwrap());
            assert_eq!(entry.session.is_some(), json.get("txnNumber").is_some());
            let noop = fixture.op == "n";
            assert_eq!(entry.operation.ui.is_some(), json.get("ui").is_some() && !noop);
            assert_eq!(entry.operation.from_migrate, json.get("fromMigrate").is_some() && !noop);
            let chained = json["prevOpTime"]["ts"]["$timestamp"]["t"].as_u64().unwrap_or(0) > 0;
            assert_eq!(entry.previous.is_some(), chained, "{}", fixture.shape);
        }
    }

    #[test]
    fn tells_the_formats_of_updates_apart() {
        let kinds = [
            (rawdoc! { "$v": 2, "diff": {} }, "diff"),
            (rawdoc! { "_id": 1, "a": 1 }, "replace"),
            (rawdoc! { "_id": 1, "$v": 2, "diff": {} }, "replace"),
            (rawdoc! { "$set": 1, "_id": 1 }, "replace"),
            (rawdoc! { "$v": 1, "$set": { "a": 1 } }, "legacy"),
            (rawdoc! { "$unset": { "a": true } }, "legacy"),
        ];
        for (o, expected) in kinds {
            assert_eq!(update_kind(&o), Ok(expected), "{o:?}");
        }
        let errors = [
            (rawdoc! { "$v": 3, "diff": {} }, DecodeError::UpdateVersion { version: 3 }),
            (rawdoc! { "$v": 2, "diff": 1 }, DecodeError::WrongType { field: "o.diff" }),
            (rawdoc! { "$v": 2 }, DecodeError::Missing { field: "o.diff" }),
            (rawdoc! { "a": 1 }, DecodeError::Missing { field: "o._id" }),
            (rawdoc! {}, DecodeError::Missing { field: "o._id" }),
        ];
        for (o, expected) in errors {
            assert_eq!(update_kind(&o), Err(expected), "{o:?}");
        }
    }

    #[test]
    fn takes_only_the_id_and_that_of_the_old_document() {
        let entry = rawdoc! {
            "op": "u", "ns": "a.b", "o": { "_id": 1.0, "k": 2 }, "o2": { "k": 1, "_id": 1_i64 },
        };
        let Kind::Replace { id, .. } = Operation::decode(&entry).unwrap().kind else { panic!() };
        assert_eq!((id.kind(), id.as_i64()), (bson::spec::ElementType::Int64, Some(1)));
    }

    #[test]
    fn ignores_unknown_fields_and_stops_on_unknown_meanings() {
        let found = entry_with(&rawdoc! { "tid": 1, "versionContext": {} });
        let found = Entry::decode(&found).unwrap();
        assert_eq!(found.op_time, OpTime::new(Ts::new(5, 6), 3));
        assert_eq!((found.wall_ms, found.retryable_batch), (99, false));
        let kind = |more: RawDocumentBuf| Entry::decode(&entry_with(&more)).map(|_| ());
        assert_eq!(kind(rawdoc! { "v": 3 }), Err(DecodeError::OplogVersion { version: 3 }));
        let op = "ci".to_owned();
        assert_eq!(kind(rawdoc! { "op": "ci" }), Err(DecodeError::UnknownOperation { op }));
        assert_eq!(kind(rawdoc! { "multiOpType": 2 }), Err(DecodeError::MultiOpType { kind: 2 }));
        assert_eq!(kind(rawdoc! { "ui": "x" }), Err(DecodeError::WrongType { field: "ui" }));
        assert_eq!(kind(rawdoc! { "multiOpType": 1 }), Ok(()));
    }

    #[test]
    fn does_not_look_into_noops() {
        let noop = entry_with(&rawdoc! { "op": "n", "ns": 1, "o": 2, "o2": 3, "ui": 4 });
        let entry = Entry::decode(&noop).unwrap();
        assert!(matches!(entry.operation.kind, Kind::Noop));
    }

    #[test]
    fn reads_an_entry_larger_than_any_document() {
        let text = "x".repeat(16 * 1024 * 1024 + 1);
        let entry = entry_with(&rawdoc! { "op": "i", "o": { "_id": 1, "text": text } });
        assert!(Entry::decode(&entry).is_ok());
    }

    proptest! {
        #[test]
        fn never_panics_on_noise(body: Vec<u8>) {
            let document = fixtures::document(&body);
            // A random entry has no version, so it must be refused.
            prop_assert!(Entry::decode(&document).is_err());
        }

        #[test]
        fn never_panics_on_damaged_entries(
            entry in fixtures::mutated(fixtures::documents("iudcn"))
        ) {
            if let Ok(entry) = Entry::decode(&entry)
                && let Kind::Insert { id, .. } = entry.operation.kind
            {
                prop_assert!(id.bytes().len() < 1_000_000);
            }
        }
    }
}
