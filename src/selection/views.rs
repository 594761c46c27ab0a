//! Views name collections: what they are views on, and what their pipelines look into. These names follow the renaming.

use bson::{Bson, Document};

use super::Selection;
use crate::namespace::Namespace;

impl Selection {
    /// The definition of `view` (a name on the source) with the collections that it names under their names on the
    /// target. A view sees only its own database; what is moved to another one is out of its sight there.
    #[must_use]
    pub fn view_at_target(&self, view: &Namespace, mut definition: Document) -> Document {
        let names = Names { selection: self, database: &view.database };
        if let Some(on) = definition.get_mut("viewOn") {
            names.map(on);
        }
        if let Some(pipeline) = definition.get_mut("pipeline") {
            names.map_pipeline(pipeline);
        }
        definition
    }
}

/// Names of collections in one database of the source.
struct Names<'a> {
    selection: &'a Selection,
    database: &'a str,
}

impl Names<'_> {
    fn map(&self, name: &mut Bson) {
        if let Bson::String(name) = name {
            *name = self.selection.target_of(&Namespace::new(self.database, &*name)).collection;
        }
    }

    fn map_field(&self, document: &mut Document, field: &str) {
        if let Some(name) = document.get_mut(field) {
            self.map(name);
        }
    }

    fn map_pipeline(&self, pipeline: &mut Bson) {
        let Bson::Array(stages) = pipeline else { return };
        for stage in stages.iter_mut().filter_map(Bson::as_document_mut) {
            for (operator, operand) in stage.iter_mut() {
                self.map_stage(operator, operand);
            }
        }
    }

    fn map_stage(&self, operator: &str, operand: &mut Bson) {
        match (operator, operand) {
            ("$unionWith", name @ Bson::String(_)) => self.map(name),
            ("$unionWith", Bson::Document(operand)) => {
                self.map_field(operand, "coll");
                self.map_inner(operand);
            }
            ("$lookup" | "$graphLookup", Bson::Document(operand)) => {
                self.map_field(operand, "from");
                self.map_inner(operand);
            }
            ("$facet", Bson::Document(facets)) => {
                facets.iter_mut().for_each(|(_, pipeline)| self.map_pipeline(pipeline));
            }
            _ => {}
        }
    }

    fn map_inner(&self, operand: &mut Document) {
        if let Some(pipeline) = operand.get_mut("pipeline") {
            self.map_pipeline(pipeline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::RenameRule;
    use bson::doc;

    fn selection() -> Selection {
        let rule = |from: &str, to: &str| RenameRule { from: from.into(), to: to.into() };
        let rename = [rule("shop", "shop_v2"), rule("shop.old", "shop_v2.new")];
        Selection::new(&["*".to_owned()], &[], &rename).unwrap()
    }

    #[test]
    fn every_name_in_a_view_follows_the_renaming() {
        let on = |name: &str| {
            let looked_up = doc! {"from": name, "as": "x", "pipeline": [{"$unionWith": name}]};
            doc! {"viewOn": name, "pipeline": [
                {"$match": {"from": "old", "$lookup": 1}},
                {"$lookup": looked_up},
                {"$graphLookup": {"from": name, "startWith": "$old", "as": "y"}},
                {"$unionWith": {"coll": name, "pipeline": [{"$lookup": {"from": name, "as": "old"}}]}},
                {"$facet": {"old": [{"$unionWith": name}], "from": [{"$limit": 1}]}},
            ]}
        };
        let view = Namespace::new("shop", "view");
        assert_eq!(selection().view_at_target(&view, on("old")), on("new"));
        assert_eq!(selection().view_at_target(&view, on("other")), on("other"));
        let elsewhere = Namespace::new("crm", "view");
        assert_eq!(selection().view_at_target(&elsewhere, on("old")), on("old"));
    }

    #[test]
    fn what_is_no_pipeline_is_left_alone() {
        let view = Namespace::new("shop", "view");
        let odd = doc! {"viewOn": 1, "pipeline": [1, {"$lookup": "old"}, {"$unionWith": 5}, {"$facet": []}]};
        assert_eq!(selection().view_at_target(&view, odd.clone()), odd);
    }
}
