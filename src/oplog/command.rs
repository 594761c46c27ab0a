//! Commands in the oplog that change the catalogue: collections, their options and their indexes.
//!
//! A name in a command is where the collection was then; the operation's `ui` says which collection it is.

use bson::spec::ElementType;
use bson::{RawDocument, RawDocumentBuf, Uuid};

use super::element::{self, Elements, Value};
use super::entry::DecodeError;
use crate::namespace::Namespace;

/// A change of the catalogue, as its oplog entry says it.
#[derive(Debug, Clone, PartialEq)]
pub enum Ddl<'a> {
    /// A new collection. (Views and time-series measurements show as documents and collections of `system.*`.)
    Create {
        /// Its name.
        collection: Namespace,
        /// The whole command: all options, `temp` and `idIndex` included. Without `idIndex`, and not clustered, the
        /// index on `_id` is of version 1.
        options: &'a RawDocument,
    },
    /// The end of a collection.
    Drop {
        /// Its name.
        collection: Namespace,
    },
    /// A collection moves, within its database.
    Rename {
        /// Its old name.
        from: Namespace,
        /// Its new name.
        to: Namespace,
        /// The collection that had the new name and is dropped by this.
        drop_target: Option<Uuid>,
        /// It stays a temporary collection of the server's own.
        stay_temp: bool,
    },
    /// New options for a collection or one of its indexes.
    CollMod {
        /// Its name.
        collection: Namespace,
        /// The whole command.
        options: &'a RawDocument,
    },
    /// New indexes; built and complete at this entry.
    CreateIndexes {
        /// The collection's name.
        collection: Namespace,
        /// One specification an index, as `createIndexes` takes them.
        specs: Vec<RawDocumentBuf>,
    },
    /// An index is gone; servers write one entry an index.
    DropIndexes {
        /// The collection's name.
        collection: Namespace,
        /// The index's name, or `*` where a client asked for all by way of `applyOps`.
        index: &'a str,
    },
    /// A database is gone. Each of its collections was dropped by an entry of its own before.
    DropDatabase {
        /// Its name.
        database: &'a str,
    },
    /// A collection becomes capped (only older servers write it like this).
    ConvertToCapped {
        /// The collection's name.
        collection: Namespace,
        /// The whole command, with `size`.
        options: &'a RawDocument,
    },
    /// All documents of a capped collection are gone.
    EmptyCapped {
        /// The collection's name.
        collection: Namespace,
    },
    /// A command without an effect on the catalogue, such as the start of an index build that may yet fail.
    Ignored {
        /// Its name.
        command: &'a str,
    },
}

impl<'a> Ddl<'a> {
    /// Reads a command other than `applyOps` and the ends of transactions, which [`super::txn`] handles. `ns`, `o` and
    /// `o2` are those of the operation.
    ///
    /// # Errors
    /// [`DecodeError::UnknownCommand`] for every command that has no known meaning here; others for one that lacks
    /// what it always had.
    pub fn decode(
        ns: &'a str,
        o: &'a RawDocument,
        o2: Option<&'a RawDocument>,
    ) -> Result<Self, DecodeError> {
        let Some(first) = Elements::new(o).next().transpose()? else {
            return Err(DecodeError::Missing { field: "o" });
        };
        let collection = || collection(ns, first.value);
        Ok(match first.name {
            b"create" => Self::Create { collection: collection()?, options: o },
            b"drop" => Self::Drop { collection: collection()? },
            b"renameCollection" => rename(first.value, o)?,
            b"collMod" => Self::CollMod { collection: collection()?, options: o },
            b"createIndexes" => {
                Self::CreateIndexes { collection: collection()?, specs: vec![flat_spec(o)?] }
            }
            b"commitIndexBuild" => {
                Self::CreateIndexes { collection: collection()?, specs: built_specs(o)? }
            }
            b"dropIndexes" | b"dropIndex" | b"deleteIndexes" | b"deleteIndex" => {
                Self::DropIndexes { collection: collection()?, index: dropped_index(o, o2)? }
            }
            b"dropDatabase" => Self::DropDatabase { database: database(ns)? },
            b"convertToCapped" => Self::ConvertToCapped { collection: collection()?, options: o },
            b"emptycapped" => Self::EmptyCapped { collection: collection()? },
            b"startIndexBuild" => Self::Ignored { command: "startIndexBuild" },
            b"abortIndexBuild" => Self::Ignored { command: "abortIndexBuild" },
            b"dbCheck" => Self::Ignored { command: "dbCheck" },
            name => {
                let command = String::from_utf8_lossy(name).into_owned();
                return Err(DecodeError::UnknownCommand { command });
            }
        })
    }
}

fn database(ns: &str) -> Result<&str, DecodeError> {
    let database = ns.strip_suffix(".$cmd").filter(|database| !database.is_empty());
    database.ok_or(DecodeError::WrongType { field: "ns" })
}

fn collection(ns: &str, name: Value<'_>) -> Result<Namespace, DecodeError> {
    let name = name.as_str().filter(|name| !name.is_empty());
    let name = name.ok_or(DecodeError::WrongType { field: "o (the collection)" })?;
    Ok(Namespace::new(database(ns)?, name))
}

fn rename<'a>(from: Value<'_>, o: &RawDocument) -> Result<Ddl<'a>, DecodeError> {
    let namespace = |field, value: Option<Value<'_>>| {
        let value = value.ok_or(DecodeError::Missing { field })?;
        value.as_str().and_then(Namespace::parse).ok_or(DecodeError::WrongType { field })
    };
    let drop_target = match element::find(o, b"dropTarget")? {
        None => None,
        Some(value) if value.as_bool() == Some(false) || value.kind() == ElementType::Null => None,
        // A plain `true` does not say which collection is dropped; supported servers write its UUID.
        Some(value) => {
            Some(value.as_uuid().ok_or(DecodeError::WrongType { field: "o.dropTarget" })?)
        }
    };
    let stay_temp = element::find(o, b"stayTemp")?.and_then(Value::as_bool).unwrap_or_default();
    Ok(Ddl::Rename {
        from: namespace("o.renameCollection", Some(from))?,
        to: namespace("o.to", element::find(o, b"to")?)?,
        drop_target,
        stay_temp,
    })
}

/// The specification in a flat `createIndexes`: all fields but the command's own.
fn flat_spec(o: &RawDocument) -> Result<RawDocumentBuf, DecodeError> {
    let mut bytes = vec![0; 4];
    for element in Elements::new(o).skip(1) {
        bytes.extend_from_slice(element?.raw);
    }
    bytes.push(0);
    let wrong = || DecodeError::WrongType { field: "o.createIndexes" };
    let len = i32::try_from(bytes.len()).map_err(|_| wrong())?;
    if let Some(prefix) = bytes.get_mut(..4) {
        prefix.copy_from_slice(&len.to_le_bytes());
    }
    RawDocumentBuf::from_bytes(bytes).map_err(|_| wrong())
}

/// The specifications in a `commitIndexBuild`.
fn built_specs(o: &RawDocument) -> Result<Vec<RawDocumentBuf>, DecodeError> {
    const FIELD: &str = "o.indexes";
    let indexes =
        element::find(o, b"indexes")?.ok_or(DecodeError::Missing { field: FIELD })?.as_array();
    let indexes = indexes.ok_or(DecodeError::WrongType { field: FIELD })?;
    Elements::new(indexes)
        .map(|element| {
            let spec = element?.value.as_document();
            Ok(spec.ok_or(DecodeError::WrongType { field: FIELD })?.to_owned())
        })
        .collect()
}

/// The name of the dropped index. The server notes its specification in `o2`.
fn dropped_index<'a>(
    o: &'a RawDocument,
    o2: Option<&'a RawDocument>,
) -> Result<&'a str, DecodeError> {
    let noted = o2.map(|spec| element::find(spec, b"name")).transpose()?.flatten();
    if let Some(name) = noted.and_then(Value::as_str) {
        return Ok(name);
    }
    const FIELD: &str = "o.index";
    let index = element::find(o, b"index")?.ok_or(DecodeError::Missing { field: FIELD })?;
    index.as_str().ok_or(DecodeError::WrongType { field: FIELD })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oplog::entry::{Entry, Kind};
    use crate::oplog::fixtures;
    use bson::rawdoc;
    use proptest::prelude::*;

    fn db(collection: &str) -> Namespace {
        Namespace::new("db", collection)
    }

    fn decode<'a>(o: &'a RawDocument, o2: Option<&'a RawDocument>) -> Result<Ddl<'a>, DecodeError> {
        Ddl::decode("db.$cmd", o, o2)
    }

    #[test]
    fn every_captured_command_is_known() {
        let mut seen = 0;
        for fixture in fixtures::entries() {
            let entry = Entry::decode(&fixture.document).unwrap();
            let Kind::Command { o, o2 } = entry.operation.kind else { continue };
            let name = o.iter().next().unwrap().unwrap().0.as_str().to_owned();
            let ddl = Ddl::decode(entry.operation.ns, o, o2);
            let expected = match name.as_str() {
                "applyOps" | "commitTransaction" | "abortTransaction" => {
                    assert_eq!(ddl, Err(DecodeError::UnknownCommand { command: name }));
                    continue;
                }
                "create" => "Create",
                "drop" => "Drop ",
                "renameCollection" => "Rename",
                "collMod" => "CollMod",
                "createIndexes" | "commitIndexBuild" => "CreateIndexes",
                "dropIndexes" => "DropIndexes",
                "dropDatabase" => "DropDatabase",
                "emptycapped" => "EmptyCapped",
                _ => "Ignored",
            };
            let ddl = format!("{:?}", ddl.unwrap());
            assert!(ddl.starts_with(expected), "{}: {ddl}", fixture.shape);
            seen += 1;
        }
        assert_eq!(seen, 70);
    }

    #[test]
    fn reads_index_specifications_in_both_forms() {
        let spec = rawdoc! { "v": 2, "unique": true, "key": { "b": 1 }, "name": "b_1" };
        let flat = rawdoc! { "createIndexes": "p", "v": 2, "unique": true, "key": { "b": 1 }, "name": "b_1" };
        let built = rawdoc! { "commitIndexBuild": "p", "indexes": [spec.clone(), spec.clone()] };
        let collection = db("p");
        let specs = vec![spec.clone()];
        let expected = Ddl::CreateIndexes { collection: collection.clone(), specs };
        assert_eq!(decode(&flat, None), Ok(expected));
        let specs = vec![spec.clone(), spec];
        assert_eq!(decode(&built, None), Ok(Ddl::CreateIndexes { collection, specs }));
    }

    #[test]
    fn prefers_the_noted_name_of_a_dropped_index() {
        let o2 = rawdoc! { "v": 2, "key": { "c": 1 }, "name": "c_1" };
        for command in ["dropIndexes", "dropIndex", "deleteIndexes", "deleteIndex"] {
            let mut o = RawDocumentBuf::new();
            o.append(bson::raw::CString::try_from(command).unwrap(), "p");
            let missing = Err(DecodeError::Missing { field: "o.index" });
            assert_eq!(decode(&o, None), missing);
            o.append(bson::raw::cstr!("index"), "*");
            let dropped = |index| Ok(Ddl::DropIndexes { collection: db("p"), index });
            assert_eq!(decode(&o, Some(&o2)), dropped("c_1"));
            assert_eq!(decode(&o, None), dropped("*"));
        }
    }

    #[test]
    fn a_rename_names_the_collection_it_drops() {
        let id = Uuid::from_bytes([7; 16]);
        let rename = |drop_target| {
            Ok(Ddl::Rename { from: db("a.b"), to: db("c"), drop_target, stay_temp: false })
        };
        let o = rawdoc! { "renameCollection": "db.a.b", "to": "db.c", "stayTemp": false };
        assert_eq!(decode(&o, None), rename(None));
        let o = rawdoc! { "renameCollection": "db.a.b", "to": "db.c", "dropTarget": bson::Binary::from(id) };
        assert_eq!(decode(&o, None), rename(Some(id)));
        let o = rawdoc! { "renameCollection": "db.a.b", "to": "db.c", "dropTarget": true };
        assert_eq!(decode(&o, None), Err(DecodeError::WrongType { field: "o.dropTarget" }));
        let o = rawdoc! { "renameCollection": "db.a.b" };
        assert_eq!(decode(&o, None), Err(DecodeError::Missing { field: "o.to" }));
    }

    #[test]
    fn names_what_it_does_not_know() {
        let o = rawdoc! { "importCollection": "p" };
        let command = "importCollection".to_owned();
        assert_eq!(decode(&o, None), Err(DecodeError::UnknownCommand { command }));
        assert_eq!(decode(&rawdoc! {}, None), Err(DecodeError::Missing { field: "o" }));
        assert!(decode(&rawdoc! { "drop": 1 }, None).is_err());
        assert!(Ddl::decode("db.c", &rawdoc! { "drop": "c" }, None).is_err());
    }

    proptest! {
        #[test]
        fn never_panics_on_damaged_commands(
            entry in fixtures::mutated(fixtures::documents("c"))
        ) {
            if let Ok(entry) = Entry::decode(&entry)
                && let Kind::Command { o, o2 } = entry.operation.kind
                && let Ok(Ddl::CreateIndexes { collection, .. }) =
                    Ddl::decode(entry.operation.ns, o, o2)
            {
                prop_assert!(entry.operation.ns.starts_with(&collection.database));
            }
        }
    }
}
