//! Certificates for servers and users, made by `openssl` for as long as a test lasts.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::Folder;

/// A certificate authority with one server certificate for 127.0.0.1.
#[derive(Debug)]
pub struct Authority {
    folder: Folder,
}

/// What all certificates here have in common: keys that are made at once, and no more days than a test needs.
const SIGN: &str = "
    new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1'
    sign() {
      printf '%b\\n' \"$2\" >\"$1.extensions\"
      openssl x509 -req -in \"$1.csr\" -CA ca.pem -CAkey ca.key -days 2 -extfile \"$1.extensions\" -out \"$1.crt\"
      cat \"$1.key\" \"$1.crt\" >\"$1.pem\"
    }
";

impl Authority {
    /// A new authority, with a certificate for the servers of this machine.
    ///
    /// # Panics
    /// Where there is no openssl.
    pub fn new() -> Self {
        let authority = Self { folder: Folder::new("tls") };
        authority.openssl(
            "openssl req -x509 $new -nodes -days 2 -subj '/CN=test authority' -keyout ca.key -out ca.pem
             openssl req $new -nodes -subj /O=servers/CN=127.0.0.1 -keyout server.key -out server.csr
             sign server 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE'",
            &[],
        );
        authority
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A file with a key and a certificate for a user with this name, such as `CN=a,OU=b`; with a password, the key is
    /// encrypted.
    pub fn user(&self, name: &str, password: Option<&str>) -> PathBuf {
        // The server names the parts the other way round.
        let subject: String = name.rsplit(',').map(|part| format!("/{part}")).collect();
        let file = format!("user-{}", self.folder.path().read_dir().expect("the folder").count());
        let protect = "openssl pkcs8 -topk8 -v2 aes-256-cbc -passout env:password";
        let protect = match password {
            Some(_) => {
                format!("{protect} -in {file}.key -out {file}.safe && mv {file}.safe {file}.key")
            }
            None => String::new(),
        };
        let script = format!(
            "openssl req $new -nodes -subj \"$subject\" -keyout {file}.key -out {file}.csr
             {protect}
             sign {file} basicConstraints=CA:FALSE"
        );
        let variables = [("subject", subject.as_str()), ("password", password.unwrap_or_default())];
        self.openssl(&script, &variables);
        self.folder.path().join(format!("{file}.pem"))
    }

    /// Arguments of a `mongod` that takes connections with TLS, and without, as those of a test.
    pub fn arguments(&self) -> Vec<String> {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let mode = ["--tlsMode", "preferTLS", "--tlsAllowConnectionsWithoutCertificates"];
        let files = [
            "--tlsCertificateKeyFile".to_owned(),
            file("server.pem"),
            "--tlsCAFile".to_owned(),
            file("ca.pem"),
        ];
        mode.map(str::to_owned).into_iter().chain(files).collect()
    }

    fn openssl(&self, script: &str, variables: &[(&str, &str)]) {
        run(self.folder.path(), &format!("{SIGN}{script}"), variables);
    }
}

fn run(folder: &Path, script: &str, variables: &[(&str, &str)]) {
    let made = Command::new("bash")
        .args(["-euc", script])
        .envs(variables.iter().copied())
        .current_dir(folder)
        .output()
        .expect("run bash");
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "openssl is missing? apt-get install openssl\n{said}");
}
