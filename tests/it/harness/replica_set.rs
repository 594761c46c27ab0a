//! Replica sets of real servers.

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bson::{Document, doc};
use futures_util::future::join_all;
use mongodb::Client;
use mongodb::options::{ClientOptions, Credential, ReadConcern, ServerAddress, WriteConcern};

use super::mongod::Mongod;
use super::process::Folder;
use super::tls::Authority;
use super::wait::wait_for;

/// How a replica set is made. The default: one member, a 256 MB oplog, no authentication.
#[derive(Debug, Clone)]
pub struct ReplicaSetOptions {
    /// How many members, all with data.
    pub members: usize,
    /// The oplog's size in MB (at least 1; the server keeps a little more than that).
    pub oplog_mb: u32,
    /// The name and password of a root user; `Some` turns authentication on.
    pub auth: Option<(String, String)>,
    /// Further arguments of `mongod`, such as `--setParameter enableTestCommands=1`.
    pub args: Vec<String>,
    /// The server's version, such as `4.4.2`; `None` for the one that is tested with.
    pub version: Option<&'static str>,
}

impl Default for ReplicaSetOptions {
    fn default() -> Self {
        Self { members: 1, oplog_mb: 256, auth: None, args: Vec::new(), version: None }
    }
}

impl ReplicaSetOptions {
    /// With that many members.
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// With servers of this version, which must have been fetched.
    pub fn version(mut self, version: &'static str) -> Self {
        self.version = Some(version);
        self
    }

    /// With an oplog of that many MB.
    pub fn oplog_mb(mut self, oplog_mb: u32) -> Self {
        self.oplog_mb = oplog_mb;
        self
    }

    /// With authentication and this root user.
    pub fn auth(mut self, user: &str, password: &str) -> Self {
        self.auth = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// With TLS, for whoever asks for it.
    pub fn tls(mut self, authority: &Authority) -> Self {
        self.args.extend(authority.arguments());
        self
    }

    /// With a server parameter, such as `enableTestCommands=1`.
    pub fn parameter(mut self, parameter: &str) -> Self {
        self.args.extend(["--setParameter".to_owned(), parameter.to_owned()]);
        self
    }
}

/// A running replica set. Its servers are killed and removed when it is dropped.
#[derive(Debug)]
pub struct ReplicaSet {
    /// The servers, for killing, freezing and restarting.
    pub members: Vec<Mongod>,
    name: String,
    options: ReplicaSetOptions,
    client: Client,
    _key: Option<Folder>,
}

impl ReplicaSet {
    /// One member with the default options.
    pub async fn single() -> Self {
        Self::start(ReplicaSetOptions::default()).await
    }

    /// Starts the servers, initiates the set and waits for a writable primary.
    pub async fn start(options: ReplicaSetOptions) -> Self {
        // Every set has another name: a client that finds the wrong one notices.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("rs{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let key = options.auth.is_some().then(write_key);
        let mut args = vec!["--replSet".to_owned(), name.clone()];
        args.extend(["--oplogSize".to_owned(), options.oplog_mb.to_string()]);
        if let Some(folder) = &key {
            let file = folder.path().join("key").display().to_string();
            args.extend(["--auth".to_owned(), "--keyFile".to_owned(), file]);
        }
        args.extend(options.args.iter().cloned());
        let members =
            join_all((0..options.members).map(|_| Mongod::start(options.version, &args))).await;
        initiate(&name, &members).await;
        let primary = wait_members(&members).await;
        if options.auth.is_some() {
            create_root(&members[primary], &options).await;
        }
        let client = connect(&name, &members, credential(&options));
        Self { members, name, options, client, _key: key }
    }

    /// The leases of those who write here.
    pub fn leases(&self) -> mongodb::Collection<Document> {
        self.client().database("snapsync").collection("lease")
    }

    /// A client of the whole set that writes with majority and finds the primary by itself.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version that was asked for; `None` for the one that is tested with.
    pub fn version(&self) -> Option<&str> {
        self.options.version
    }

    /// A connection string with all members (and the root user's password, if there is one).
    pub fn uri(&self) -> String {
        let hosts: Vec<String> = self.members.iter().map(Mongod::host).collect();
        let (user, end) = match &self.options.auth {
            Some((user, password)) => (format!("{user}:{password}@"), "&authSource=admin"),
            None => (String::new(), ""),
        };
        format!("mongodb://{user}{}/?replicaSet={}{end}", hosts.join(","), self.name)
    }

    /// A direct client of one member, whatever its role.
    pub async fn member_client(&self, member: usize) -> Client {
        self.members[member].client(credential(&self.options)).await
    }

    /// Which member is the writable primary now; waits until there is one.
    pub async fn primary(&self) -> usize {
        wait_for("a primary", Duration::from_secs(60), || async {
            for (index, member) in self.members.iter().enumerate() {
                if role(member).await == Role::Primary {
                    return Ok(index);
                }
            }
            Err(format!("no member of {} is primary", self.name))
        })
        .await
    }

    /// Runs a command on `admin` of the primary.
    pub async fn admin(&self, command: Document) -> Document {
        self.client.database("admin").run_command(command).await.expect("an admin command")
    }

    /// Makes the primary step down, by force, and not seek election for `seconds`. A set of one member has no
    /// primary for that long.
    pub async fn step_down(&self, seconds: i32) {
        self.admin(doc! {"replSetStepDown": seconds, "secondaryCatchUpPeriodSecs": seconds.min(2), "force": true})
            .await;
    }

    /// Kills the process of every member as a power cut would.
    pub fn kill9(&mut self) {
        self.members.iter_mut().for_each(Mongod::kill9);
    }

    /// Starts every member again on its data and waits for a primary.
    pub async fn restart(&mut self) {
        join_all(self.members.iter_mut().map(Mongod::restart)).await;
        self.primary().await;
    }

    /// SIGSTOP to every member.
    pub fn freeze(&mut self) {
        self.members.iter_mut().for_each(Mongod::freeze);
    }

    /// SIGCONT to every member.
    pub fn thaw(&mut self) {
        self.members.iter_mut().for_each(Mongod::thaw);
    }

    /// The newest majority-committed place in the oplog (`lastWrite.majorityOpTime.ts` of the primary).
    pub async fn majority_ts(&self) -> bson::Timestamp {
        let hello = self.admin(doc! {"isMaster": 1}).await;
        let last_write = hello.get_document("lastWrite").expect("lastWrite");
        let optime = last_write.get_document("majorityOpTime").expect("majorityOpTime");
        optime.get_timestamp("ts").expect("ts")
    }
}

/// A source and a target of one member each.
#[derive(Debug)]
pub struct Pair {
    /// Where the data comes from.
    pub source: ReplicaSet,
    /// Where it goes.
    pub target: ReplicaSet,
}

impl Pair {
    /// Starts both at the same time with the default options.
    pub async fn start() -> Self {
        Self::with(ReplicaSetOptions::default(), ReplicaSetOptions::default()).await
    }

    /// Starts both at the same time with these options.
    pub async fn with(source: ReplicaSetOptions, target: ReplicaSetOptions) -> Self {
        let (source, target) = tokio::join!(ReplicaSet::start(source), ReplicaSet::start(target));
        Self { source, target }
    }
}

async fn initiate(name: &str, members: &[Mongod]) {
    let list: Vec<Document> =
        (0i32..).zip(members).map(|(id, member)| doc! {"_id": id, "host": member.host()}).collect();
    let config = doc! {
        "_id": name, "version": 1, "members": list,
        "settings": {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 500},
    };
    let client = members[0].client(None).await;
    let reply = client.database("admin").run_command(doc! {"replSetInitiate": config}).await;
    reply.unwrap_or_else(|error| panic!("replSetInitiate: {error}\n{}", members[0].log_tail()));
}

#[derive(Debug, PartialEq, Eq)]
enum Role {
    Primary,
    Secondary,
    Neither,
}

async fn role(member: &Mongod) -> Role {
    let hello = member.hello().await.unwrap_or_default();
    let is = |field: &str| hello.get_bool(field).unwrap_or(false);
    match (is("ismaster"), is("secondary")) {
        (true, _) => Role::Primary,
        (false, true) => Role::Secondary,
        (false, false) => Role::Neither,
    }
}

/// Waits until one member is primary and all others are in step behind it; returns the primary.
async fn wait_members(members: &[Mongod]) -> usize {
    wait_for("a primary and its secondaries", Duration::from_secs(60), || async {
        let roles = join_all(members.iter().map(role)).await;
        match roles.iter().position(|role| *role == Role::Primary) {
            Some(primary) if !roles.contains(&Role::Neither) => Ok(primary),
            _ => Err(format!("the members are {roles:?}")),
        }
    })
    .await
}

/// A user who may do everything, and read the definitions of views, which `root` may not.
async fn create_root(member: &Mongod, options: &ReplicaSetOptions) {
    let (user, password) = options.auth.as_ref().expect("a user");
    let command = doc! {"createUser": user, "pwd": password, "roles": ["root"]};
    let first = member.client(None).await;
    first.database("admin").run_command(command).await.expect("create the first user");
    let client = member.client(credential(options)).await;
    let views = doc! {
        "resource": {"db": "", "collection": "system.views"}, "actions": ["find"],
    };
    for command in [
        doc! {"createRole": "readViews", "privileges": [views], "roles": []},
        doc! {"grantRolesToUser": user, "roles": ["readViews"]},
    ] {
        client.database("admin").run_command(command).await.expect("let it read views");
    }
}

fn connect(name: &str, members: &[Mongod], credential: Option<Credential>) -> Client {
    let hosts: Vec<ServerAddress> =
        members.iter().map(|m| ServerAddress::parse(m.host()).expect("an address")).collect();
    let mut options = ClientOptions::default();
    options.hosts = hosts;
    options.repl_set_name = Some(name.to_owned());
    options.credential = credential;
    options.app_name = Some("snapsync-tests".to_owned());
    options.write_concern = Some(WriteConcern::majority());
    options.read_concern = Some(ReadConcern::local());
    options.heartbeat_freq = Some(Duration::from_millis(500));
    Client::with_options(options).expect("a client")
}

fn credential(options: &ReplicaSetOptions) -> Option<Credential> {
    let (user, password) = options.auth.clone()?;
    Some(Credential::builder().username(user).password(password).source("admin".to_owned()).build())
}

/// A folder with a key file that every member shares; mongod refuses one that others may read.
fn write_key() -> Folder {
    let folder = Folder::new("key");
    let file = folder.path().join("key");
    std::fs::write(&file, "c25hcHN5bmMtdGVzdHMta2V5LWZpbGU=\n").expect("write the key file");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("chmod 600");
    folder
}
