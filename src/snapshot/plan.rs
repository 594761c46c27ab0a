//! What a snapshot would do: both sides are checked, and nothing is written.

use std::collections::BTreeSet;

use serde::Serialize;

use super::start::{Connected, connect};
use crate::config::Config;
use crate::exit::Exit;
use crate::mongo::{Error, listing};
use crate::namespace::Namespace;
use crate::selection::is_temporary;
use crate::source::{catalog, scan};

/// A collection that would be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// Its name on the source.
    pub collection: String,
    /// Its name on the target.
    pub target_collection: String,
    /// Documents by the source's metadata; `None` if it is not there.
    pub documents: Option<u64>,
    /// Bytes of them.
    pub bytes: Option<u64>,
    /// Whether something on the target has that name.
    pub replaces: bool,
}

/// Checks both sides, and lists what there is to copy.
///
/// # Errors
/// What a snapshot would be refused for.
pub async fn plan(config: &Config) -> Result<Vec<Planned>, Exit> {
    let Connected { source, asking, .. } = connect(config).await?;
    let failed = |error: Error| Exit::at_start(&error);
    let (wanted, selection) = (&config.snapshot, &config.sync.selection);
    let catalogue = catalog::read(&source, selection).await.map_err(failed)?;
    let listed = listing::collections(&asking, &wanted.target_database).await.map_err(failed)?;
    let there: BTreeSet<&str> =
        listed.iter().map(|entry| entry.namespace.collection.as_str()).collect();
    let target = |name: &str| Namespace::new(&wanted.target_database, name).to_string();
    let mut planned = Vec::new();
    for collection in catalogue.collections.values() {
        let name = &collection.source;
        if is_temporary(&name.collection) {
            continue;
        }
        let size = scan::size(&source, &name.database, &name.collection).await.map_err(failed)?;
        let known_as = name.collection.strip_prefix("system.buckets.").unwrap_or(&name.collection);
        planned.push(Planned {
            collection: known_as.to_owned(),
            target_collection: target(known_as),
            documents: Some(size.documents),
            bytes: Some(size.bytes),
            replaces: there.contains(known_as),
        });
    }
    for name in super::place::absent(&catalogue, &wanted.collections) {
        let replaces = there.contains(name.as_str());
        let target_collection = target(&name);
        planned.push(Planned {
            collection: name,
            target_collection,
            documents: None,
            bytes: None,
            replaces,
        });
    }
    planned.sort_by(|a, b| a.collection.cmp(&b.collection));
    Ok(planned)
}
