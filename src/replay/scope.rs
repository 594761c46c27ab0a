//! Whose contents a window is planned for. A collection that is copied again is *held*: the main replay leaves its
//! contents (documents, options, indexes) alone, and a replay of their own brings the copies up to date. What moves or
//! removes a collection (create, rename, drop) stays with the main replay alone. Pure.

use std::collections::BTreeSet;

use bson::Uuid;

use super::plan::{CollectionChange, Definition};

/// Collections by their UUID on the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything that is selected, but not the contents of these.
    AllBut(BTreeSet<Uuid>),
    /// The contents of these and nothing else, whatever their names are.
    Only(BTreeSet<Uuid>),
}

impl Scope {
    /// Everything that is selected.
    #[must_use]
    pub const fn all() -> Self {
        Self::AllBut(BTreeSet::new())
    }

    /// Whether the contents of a collection are in it; `selected` says whether its name is.
    #[must_use]
    pub fn has_contents(&self, uuid: Option<Uuid>, selected: impl FnOnce() -> bool) -> bool {
        match self {
            Self::AllBut(held) => !uuid.is_some_and(|uuid| held.contains(&uuid)) && selected(),
            Self::Only(these) => uuid.is_some_and(|uuid| these.contains(&uuid)),
        }
    }

    /// Whether a definition that concerns the selection is carried out.
    #[must_use]
    pub fn has(&self, definition: &Definition) -> bool {
        let Definition::Collection { uuid, change } = definition else {
            return matches!(self, Self::AllBut(_));
        };
        match change {
            CollectionChange::Modify { .. }
            | CollectionChange::CreateIndexes { .. }
            | CollectionChange::Empty
            | CollectionChange::DropIndex { .. } => self.has_contents(Some(*uuid), || true),
            CollectionChange::Create { .. }
            | CollectionChange::Drop
            | CollectionChange::Rename { .. } => matches!(self, Self::AllBut(_)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bson::doc;

    #[test]
    fn contents_go_to_one_of_the_two_and_moves_to_the_main_one() {
        let (held, free) = (Uuid::new(), Uuid::new());
        let (main, own) = (Scope::AllBut([held].into()), Scope::Only([held].into()));
        for uuid in [held, free] {
            let both = [&main, &own].map(|scope| scope.has_contents(Some(uuid), || true));
            assert_eq!(both, [uuid == free, uuid == held]);
            let modify = CollectionChange::Modify { changes: doc! {} };
            let modify = Definition::Collection { uuid, change: modify };
            assert_eq!([&main, &own].map(|scope| scope.has(&modify)), both);
            let drop = Definition::Collection { uuid, change: CollectionChange::Drop };
            assert_eq!([&main, &own].map(|scope| scope.has(&drop)), [true, false]);
        }
        assert!(!main.has_contents(Some(free), || false), "not selected");
        assert!(own.has_contents(Some(held), || false), "whatever its name is");
        assert!(!own.has_contents(None, || true));
    }
}
