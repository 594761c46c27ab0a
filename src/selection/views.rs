//! Views name collections: what they are views on, and what their pipelines look into. These names follow the renaming.

use bson::{Bson, Document};

use super::Selection;
use crate::namespace::Namespace;

impl Selection {
    /// The definition of `view` (a name on the source) with the collections that it names under their names on the
    /// target. A view sees only its own database; what is moved to another one is out of its sight there.
    #[must_use]
    pub fn view_at_target(&self, view: &Namespace, mut definition: Document) -> Document {
        let at_target = |name: &mut String| {
            *name = self.target_of(&Namespace::new(&view.database, &*name)).collection
        };
        Names(at_target).visit(&mut definition);
        definition
    }
}

/// The collections that a view names, each as often as it does.
#[must_use]
pub fn names_in_view(definition: &Document) -> Vec<String> {
    let mut found = Vec::new();
    Names(|name: &mut String| found.push(name.clone())).visit(&mut definition.clone());
    found
}

/// Changes every name of a collection in the definition of a view.
pub(super) fn each_name(definition: &mut Document, change: impl FnMut(&mut String)) {
    Names(change).visit(definition);
}

/// Calls this for every name of a collection.
struct Names<F>(F);

impl<F: FnMut(&mut String)> Names<F> {
    fn visit(&mut self, definition: &mut Document) {
        self.field(definition, "viewOn");
        self.inner(definition);
    }

    fn name(&mut self, name: &mut Bson) {
        if let Bson::String(name) = name {
            (self.0)(name);
        }
    }

    fn field(&mut self, document: &mut Document, field: &str) {
        if let Some(name) = document.get_mut(field) {
            self.name(name);
        }
    }

    fn pipeline(&mut self, pipeline: &mut Bson) {
        let Bson::Array(stages) = pipeline else { return };
        for stage in stages.iter_mut().filter_map(Bson::as_document_mut) {
            for (operator, operand) in stage.iter_mut() {
                self.stage(operator, operand);
            }
        }
    }

    fn stage(&mut self, operator: &str, operand: &mut Bson) {
        match (operator, operand) {
            ("$unionWith", name @ Bson::String(_)) => self.name(name),
            ("$unionWith", Bson::Document(operand)) => {
                self.field(operand, "coll");
                self.inner(operand);
            }
            ("$lookup" | "$graphLookup", Bson::Document(operand)) => {
                self.field(operand, "from");
                self.inner(operand);
            }
            ("$facet", Bson::Document(facets)) => {
                facets.iter_mut().for_each(|(_, pipeline)| self.pipeline(pipeline));
            }
            _ => {}
        }
    }

    fn inner(&mut self, operand: &mut Document) {
        if let Some(pipeline) = operand.get_mut("pipeline") {
            self.pipeline(pipeline);
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
        assert_eq!(names_in_view(&on("old")), ["old"; 7]);
    }

    #[test]
    fn what_is_no_pipeline_is_left_alone() {
        let view = Namespace::new("shop", "view");
        let odd = doc! {"viewOn": 1, "pipeline": [1, {"$lookup": "old"}, {"$unionWith": 5}, {"$facet": []}]};
        assert_eq!(selection().view_at_target(&view, odd.clone()), odd);
    }
}
