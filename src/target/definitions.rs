//! Definitions on the target: collections, views, indexes. Each call is safe to make again, and says by its result
//! whether it found the thing done already. Drops go by UUID only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::{Document, Uuid, doc};

use super::builds::Builds;
use super::deadline::Deadline;
use super::held_back::{create_command, index_to_build, never_expires};
use super::inflight;
use super::statements::Place;
use crate::mongo::{Deployment, Error, Listed, Version, listing, run};
use crate::namespace::Namespace;
use crate::retry::{Backoff, Outage, Stopped, unless_stopped, until_reached};
use crate::selection::{NEVER_COPIED, STAGING_PREFIX};
use crate::stop::Stop;

/// No server drops it but with its database, or gives it another name.
const STORED_FUNCTIONS: &str = "system.js";
const NAMESPACE_NOT_FOUND: i32 = 26;
const INDEX_NOT_FOUND: i32 = 27;
const NAMESPACE_EXISTS: i32 = 48;
const COLLECTION_UUID_MISMATCH: i32 = 361;
/// The collection is not there, or not under this name.
const GONE: [i32; 2] = [NAMESPACE_NOT_FOUND, COLLECTION_UUID_MISMATCH];
/// The create command makes no collection that is both.
const CAPPED_AND_CLUSTERED: i32 = 6_127_800;
/// Index definitions that clash with one that is there: same name or same keys, other options.
const INDEX_CLASHES: [i32; 2] = [85, 86];

/// Defines things on one deployment.
#[derive(Debug, Clone)]
pub struct Definer {
    deployment: Deployment,
    checks_uuid: bool,
    widens: bool,
    never_expires: i32,
    app_name: String,
    deadline: Deadline,
    commands: Arc<AtomicU64>,
    builds: Builds,
}

impl Definer {
    /// For a target of this version, on connections that carry `app_name`, as long as the lease lasts. `widens` tells
    /// whether the source logs what capped collections evict, and the target can be given their limits later.
    #[must_use]
    pub fn new(
        deployment: Deployment,
        version: Version,
        widens: bool,
        app_name: String,
        deadline: Deadline,
    ) -> Self {
        // collectionUUID came with 6.0.
        let checks_uuid = version >= Version(6, 0, 0);
        let never_expires = never_expires(version);
        let (commands, builds) = (Arc::default(), Builds::default());
        Self {
            deployment,
            checks_uuid,
            widens,
            never_expires,
            app_name,
            deadline,
            commands,
            builds,
        }
    }

    /// The deployment that is defined on.
    #[must_use]
    pub fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// The index builds that are waited for.
    #[must_use]
    pub fn builds(&self) -> &Builds {
        &self.builds
    }

    /// The `expireAfterSeconds` of an index that deletes nothing.
    #[must_use]
    pub fn never_expires(&self) -> i32 {
        self.never_expires
    }

    /// Whether a collection with these options has wider limits on the target.
    #[must_use]
    pub fn widens(&self, options: &Document) -> bool {
        self.widens && options.get_bool("capped").unwrap_or(false)
    }

    /// Where to write a collection: its name, and its UUID where the server checks it.
    #[must_use]
    pub fn place(&self, namespace: &Namespace, uuid: Option<Uuid>) -> Place {
        Place { namespace: namespace.clone(), uuid: uuid.filter(|_| self.checks_uuid) }
    }

    /// Runs a definition until its outcome is known. After a lost answer the first attempt is killed and waited out
    /// before the second, so that it cannot come into force later than something newer.
    async fn define(
        &self,
        database: &str,
        action: &str,
        command: Document,
        stop: &Stop,
    ) -> Result<Document, Stopped<Error>> {
        let mut repeated = false;
        self.define_again(database, action, command, &mut repeated, stop).await
    }

    /// As [`define`](Self::define); `repeated` tells that an earlier attempt of this call may have been carried out
    /// although its answer was lost.
    async fn define_again(
        &self,
        database: &str,
        action: &str,
        mut command: Document,
        repeated: &mut bool,
        stop: &Stop,
    ) -> Result<Document, Stopped<Error>> {
        tracing::debug!("{action}");
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let comment = inflight::definition_comment(&self.app_name, &number.to_string());
        command.insert("comment", &comment);
        command.insert("writeConcern", doc! { "w": "majority" });
        let is_index_build = command.contains_key("createIndexes");
        let mut backoff = Backoff::reconnect();
        let outage = Outage::new(self.deployment.side);
        loop {
            self.deadline.hold_to_define(stop).await?;
            let call = run(&self.deployment, database, action, command.clone());
            match unless_stopped(stop, call).await? {
                Ok(reply) => return Ok(reply),
                Err(error) if error.is_unreachable() => {
                    *repeated = true;
                    outage.report(&error);
                    stop.sleep(backoff.next_delay()).await?;
                    if !is_index_build {
                        inflight::clear_commented(&self.deployment, &comment, stop).await?;
                    }
                }
                Err(error) => return Err(Stopped::Failed(error)),
            }
        }
    }

    /// Kills what of this run is still in flight although nobody waits for it any more; see
    /// [`inflight::clear_cut_short`].
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn clear_cut_short(
        &self,
        sessions: &[Uuid],
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        inflight::clear_cut_short(&self.deployment, &self.app_name, sessions, stop).await
    }

    /// Every collection and view of a database, in order of name.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn list(&self, database: &str, stop: &Stop) -> Result<Vec<Listed>, Stopped<Error>> {
        let side = self.deployment.side;
        until_reached(side, stop, || listing::collections(&self.deployment, database)).await
    }

    /// Names of all databases that may hold something copied.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn databases(&self, stop: &Stop) -> Result<Vec<String>, Stopped<Error>> {
        let side = self.deployment.side;
        let mut names = until_reached(side, stop, || listing::databases(&self.deployment)).await?;
        names.retain(|name| !NEVER_COPIED.contains(&name.as_str()));
        Ok(names)
    }

    /// The collection at this name, if there is one.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn find(
        &self,
        namespace: &Namespace,
        stop: &Stop,
    ) -> Result<Option<Listed>, Stopped<Error>> {
        let side = self.deployment.side;
        let filter = doc! { "name": &namespace.collection };
        let list = || listing::matching(&self.deployment, &namespace.database, filter.clone());
        let mut found = until_reached(side, stop, list).await?;
        Ok(found.pop())
    }

    /// Creates a collection; `None` if the name is taken. An empty one for stored functions that is there is as good as
    /// a new one.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn create(
        &self,
        namespace: &Namespace,
        options: &Document,
        id_index: Option<&Document>,
        stop: &Stop,
    ) -> Result<Option<Uuid>, Stopped<Error>> {
        let action = format!("create {namespace}");
        let command = create_command(namespace, options, id_index, self.widens(options));
        let mut repeated = false;
        let mut made = self
            .define_again(&namespace.database, &action, command.clone(), &mut repeated, stop)
            .await;
        if let Err(Stopped::Failed(error)) = &made
            && error.code() == Some(CAPPED_AND_CLUSTERED)
        {
            // What convertToCapped makes of a clustered collection, the create command does not make; this one does.
            let ns = format!("{}.$cmd", namespace.database);
            let operation = doc! { "op": "c", "ns": ns, "o": command };
            let command = doc! { "applyOps": [operation] };
            made = self.define_again("admin", &action, command, &mut repeated, stop).await;
        }
        match made {
            Ok(_) => {}
            // Made by the attempt whose answer was lost.
            Err(Stopped::Failed(error)) if repeated && error.code() == Some(NAMESPACE_EXISTS) => {}
            Err(Stopped::Failed(error)) if error.code() == Some(NAMESPACE_EXISTS) => {
                if !self.is_emptied(namespace, stop).await? {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error),
        }
        let found = self.find(namespace, stop).await?;
        let uuid = found.and_then(|listed| listed.uuid);
        uuid.map(Some).ok_or_else(|| Stopped::Failed(self.lost(&action)))
    }

    fn lost(&self, action: &str) -> Error {
        let text = "the collection is not there although the server said it was made";
        Error::other(self.deployment.side, action, text)
    }

    /// Whether this is a collection for stored functions without any, as [`drop_collection`](Self::drop_collection)
    /// leaves it.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn is_emptied(
        &self,
        namespace: &Namespace,
        stop: &Stop,
    ) -> Result<bool, Stopped<Error>> {
        let side = self.deployment.side;
        let holds = || listing::holds_documents(&self.deployment, namespace);
        Ok(namespace.collection == STORED_FUNCTIONS && !until_reached(side, stop, holds).await?)
    }

    /// Drops the collection with this UUID, wherever the name has gone; nothing if it is not there. Stored functions
    /// are removed, and their indexes: their collection goes with the database only.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn drop_collection(
        &self,
        namespace: &Namespace,
        uuid: Uuid,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let is_time_series = namespace.collection.starts_with("system.buckets.");
        let stored = namespace.collection == STORED_FUNCTIONS;
        if !self.checks_uuid || is_time_series || stored {
            let found = self.find(namespace, stop).await?;
            if found.is_none() {
                return self.drop_bare_series(namespace, stop).await;
            }
            if found.and_then(|listed| listed.uuid) != Some(uuid) {
                return Ok(());
            }
        }
        if stored {
            let place = self.place(namespace, Some(uuid));
            self.drop_index(&place, "*", stop).await?;
            return self.empty(&place, stop).await;
        }
        // A time-series collection is dropped by the name of its view.
        let name = namespace.collection.strip_prefix("system.buckets.");
        let mut command = doc! { "drop": name.unwrap_or(&namespace.collection) };
        if self.checks_uuid && name.is_none() {
            command.insert("collectionUUID", uuid);
        }
        let action = format!("drop {namespace}");
        let result = self.define(&namespace.database, &action, command, stop).await;
        tolerate(result, &GONE)
    }

    /// Drops what is left of a time-series collection if its drop was cut short: the server takes away the buckets and
    /// what clients see in two steps. Nothing if the buckets are there.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn drop_bare_series(
        &self,
        buckets: &Namespace,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let Some(name) = buckets.collection.strip_prefix("system.buckets.") else { return Ok(()) };
        let series = Namespace::new(&buckets.database, name);
        let found = self.find(&series, stop).await?;
        if found.is_none_or(|listed| listed.kind != "timeseries")
            || self.find(buckets, stop).await?.is_some()
        {
            return Ok(());
        }
        self.drop_time_series(&series, stop).await
    }

    /// Removes every document of a collection.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn empty(&self, place: &Place, stop: &Stop) -> Result<(), Stopped<Error>> {
        let namespace = &place.namespace;
        let all = doc! { "q": {}, "limit": 0 };
        let mut command = doc! { "delete": &namespace.collection, "deletes": [all] };
        if let Some(uuid) = place.uuid {
            command.insert("collectionUUID", uuid);
        }
        let action = format!("empty {namespace}");
        self.define(&namespace.database, &action, command, stop).await.map(drop)
    }

    /// Renames a collection within the deployment. The new name must be free.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn rename(
        &self,
        from: &Place,
        to: &Namespace,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let name = &from.namespace;
        let mut command = doc! { "renameCollection": name.to_string(), "to": to.to_string() };
        // Servers do not check which collection it is when it moves to another database.
        if name.database == to.database {
            command = of_collection(command, from);
        }
        let action = format!("rename {name} to {to}");
        let mut repeated = false;
        match self.define_again("admin", &action, command, &mut repeated, stop).await {
            // Renamed by the attempt whose answer was lost.
            Err(Stopped::Failed(error))
                if repeated
                    && error.code().is_some_and(|code| GONE.contains(&code))
                    && self.find(to, stop).await?.is_some() =>
            {
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// Renames a collection, known by its UUID, to a name that is another collection's, which is dropped in the same
    /// step: whoever reads there finds the one or the other.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn replace(
        &self,
        from: &Namespace,
        uuid: Uuid,
        to: &Namespace,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let command = doc! {
            "renameCollection": from.to_string(), "to": to.to_string(), "dropTarget": true,
        };
        let command = of_collection(command, &self.place(from, Some(uuid)));
        let action = format!("put {to} in its place");
        match self.define("admin", &action, command, stop).await {
            // Done by an attempt whose answer was lost.
            Err(Stopped::Failed(error))
                if error.code().is_some_and(|code| GONE.contains(&code))
                    && self.find(to, stop).await?.and_then(|found| found.uuid) == Some(uuid) =>
            {
                Ok(())
            }
            result => result.map(drop),
        }
    }

    /// Changes a collection's or an index's options; nothing if neither is there.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn modify(
        &self,
        place: &Place,
        changes: &Document,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let namespace = &place.namespace;
        let mut command = doc! { "collMod": &namespace.collection };
        command.extend(changes.clone());
        let action = format!("modify {namespace}");
        let command = of_collection(command, place);
        let result = self.define(&namespace.database, &action, command, stop).await;
        tolerate(result, &[NAMESPACE_NOT_FOUND, INDEX_NOT_FOUND])
    }

    /// Builds indexes and waits until they are ready; joins a build that is running already. An index that is there
    /// under the same name with other options is replaced.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn create_indexes(
        &self,
        place: &Place,
        specs: &[Document],
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        if specs.is_empty() {
            return Ok(());
        }
        let built = self.build(place, specs, stop).await;
        match built {
            Err(Stopped::Failed(error))
                if error.code().is_some_and(|code| INDEX_CLASHES.contains(&code)) =>
            {
                for spec in specs {
                    if let Ok(name) = spec.get_str("name") {
                        self.drop_index(place, name, stop).await?;
                    }
                }
                self.build(place, specs, stop).await
            }
            result => result,
        }
    }

    async fn build(
        &self,
        place: &Place,
        specs: &[Document],
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let specs: Vec<Document> =
            specs.iter().map(|spec| index_to_build(spec, self.never_expires)).collect();
        let (namespace, specs_count) = (&place.namespace, specs.len());
        let command = doc! { "createIndexes": &namespace.collection, "indexes": specs };
        let command = of_collection(command, place);
        let action = format!("build indexes on {namespace}");
        let _awaited = self.builds.begin(namespace, specs_count);
        self.define(&namespace.database, &action, command, stop).await.map(drop)
    }

    /// Drops an index by name; nothing if it is not there.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn drop_index(
        &self,
        place: &Place,
        name: &str,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let namespace = &place.namespace;
        let command = doc! { "dropIndexes": &namespace.collection, "index": name };
        let command = of_collection(command, place);
        let action = format!("drop an index of {namespace}");
        let result = self.define(&namespace.database, &action, command, stop).await;
        tolerate(result, &[NAMESPACE_NOT_FOUND, INDEX_NOT_FOUND])
    }

    /// Creates a view, or changes the one that is there.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn put_view(
        &self,
        view: &Namespace,
        definition: &Document,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let mut command = doc! { "create": &view.collection };
        command.extend(definition.clone());
        let action = format!("create the view {view}");
        match self.define(&view.database, &action, command, stop).await {
            Err(Stopped::Failed(error)) if error.code() == Some(NAMESPACE_EXISTS) => {
                let mut changes = definition.clone();
                // A view's collation cannot be changed, only stated when it is made.
                changes.remove("collation");
                self.modify(&self.place(view, None), &changes, stop).await
            }
            result => result.map(drop),
        }
    }

    /// Drops a view; nothing if it is not there or is a collection by now.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn drop_view(&self, view: &Namespace, stop: &Stop) -> Result<(), Stopped<Error>> {
        match self.find(view, stop).await? {
            Some(listed) if listed.kind == "view" => {}
            _ => return Ok(()),
        }
        let command = doc! { "drop": &view.collection };
        let action = format!("drop the view {view}");
        let result = self.define(&view.database, &action, command, stop).await;
        tolerate(result, &[NAMESPACE_NOT_FOUND])
    }

    /// Makes the place where a database stores its views, if it has none: it stays when the last view is dropped.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn make_view_store(&self, database: &str, stop: &Stop) -> Result<(), Stopped<Error>> {
        let passing = Namespace::new(database, format!("{STAGING_PREFIX}view"));
        if self.find(&Namespace::new(database, "system.views"), stop).await?.is_none() {
            let definition = doc! { "viewOn": "nothing", "pipeline": [] };
            self.put_view(&passing, &definition, stop).await?;
        }
        // A run that was cut short may have left it.
        self.drop_view(&passing, stop).await
    }

    /// Drops a time-series collection with its buckets.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn drop_time_series(
        &self,
        name: &Namespace,
        stop: &Stop,
    ) -> Result<(), Stopped<Error>> {
        let action = format!("drop the time-series {name}");
        let command = doc! { "drop": &name.collection };
        let result = self.define(&name.database, &action, command, stop).await;
        tolerate(result, &[NAMESPACE_NOT_FOUND])
    }

    /// Drops a database. The caller has made sure that nothing foreign is in it.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn drop_database(&self, database: &str, stop: &Stop) -> Result<(), Stopped<Error>> {
        let action = format!("drop the database {database}");
        self.define(database, &action, doc! { "dropDatabase": 1 }, stop).await.map(drop)
    }
}

/// The command with the UUID that the collection must have, where the server checks it.
fn of_collection(mut command: Document, place: &Place) -> Document {
    if let Some(uuid) = place.uuid {
        command.insert("collectionUUID", uuid);
    }
    command
}

fn tolerate(result: Result<Document, Stopped<Error>>, codes: &[i32]) -> Result<(), Stopped<Error>> {
    match result {
        Err(Stopped::Failed(error)) if error.code().is_some_and(|code| codes.contains(&code)) => {
            Ok(())
        }
        result => result.map(drop),
    }
}
