//! TLS as the driver does it, for the one connection that is not the driver's own ([`super::relay`]): the same options,
//! the same certificates, the same provider.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use mongodb::options::TlsOptions;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};

/// Prepares TLS as these options of a connection string ask for it.
///
/// # Errors
/// A file that cannot be read or used, in words.
pub(super) fn connector(options: &TlsOptions) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    match &options.ca_file_path {
        Some(path) => {
            let certificates = CertificateDer::pem_file_iter(path).map_err(unusable(path))?;
            roots.add_parsable_certificates(certificates.flatten());
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let mut config = match &options.cert_key_file_path {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let certificates: Result<Vec<_>, _> =
                CertificateDer::pem_file_iter(path).map_err(unusable(path))?.collect();
            let password = options.tls_certificate_key_file_password.as_deref();
            let key = match password {
                None => PrivateKeyDer::from_pem_file(path).map_err(unusable(path))?,
                Some(password) => encrypted_key(path, password)?,
            };
            let certificates = certificates.map_err(unusable(path))?;
            builder.with_client_auth_cert(certificates, key).map_err(unusable(path))?
        }
    };
    if options.allow_invalid_certificates == Some(true) {
        config.dangerous().set_certificate_verifier(Arc::new(AnyCertificate(provider)));
    }
    Ok(Arc::new(config).into())
}

fn unusable<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> String {
    move |error| format!("{} cannot be used: {error}", path.display())
}

fn encrypted_key(path: &Path, password: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let text = fs::read(path).map_err(unusable(path))?;
    let sections = pem::parse_many(&text).map_err(unusable(path))?;
    let section = sections
        .into_iter()
        .find(|section| section.tag() == "ENCRYPTED PRIVATE KEY")
        .ok_or_else(|| format!("{} holds no encrypted private key", path.display()))?;
    let encrypted = pkcs8::EncryptedPrivateKeyInfoRef::try_from(section.contents());
    // The reason is left out: it could say something about the password.
    let decrypted = encrypted.ok().and_then(|key| key.decrypt(password).ok());
    let key = decrypted
        .ok_or_else(|| format!("the private key in {} cannot be decrypted", path.display()))?;
    Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into())
}

/// The name to ask for in a handshake.
///
/// # Errors
/// Not a host name.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned()).map_err(|error| format!("{host}: {error}"))
}

/// What `tlsAllowInvalidCertificates` asks for.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
