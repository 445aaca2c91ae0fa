//! TLS: the files that it takes, and whether the address may do without.
//!
//! Knows: certificates, keys, rustls. Does not know: when in a handshake a client
//! asks for it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls::{RootCertStore, crypto};
use tokio_rustls::TlsAcceptor;

use super::{Listen, Options, TlsFiles};
use crate::error::{Error, Exit, Result};

/// Reads the files, and refuses an address that others can reach without TLS.
pub(super) fn prepare(options: &Options) -> Result<Option<TlsAcceptor>> {
    if let Some(files) = &options.tls {
        return acceptor(files).map(Some);
    }
    if let Listen::Tcp(address) = &options.listen
        && !address.ip().to_canonical().is_loopback()
    {
        if !options.insecure_plaintext {
            let text = format!("{address} can be reached from other machines, and there is no TLS");
            return Err(Error::usage(text).hint(
                "--tls-cert FILE --tls-key FILE --tls-client-ca FILE let in only whom you \
                 trust; --insecure-plaintext lets everyone read and write the volumes",
            ));
        }
        tracing::warn!(%address, "no TLS: whoever reaches this address can use the volumes");
    }
    Ok(None)
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor> {
    let chain = certificates(&files.certificate)?;
    let key = key(&files.key)?;
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::failed(format!("TLS: {error}")))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let unusable = |error: &dyn std::fmt::Display| {
                Error::usage(format!("{}: not an authority: {error}", path.display()))
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(&error))?)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| {
        Error::usage(format!(
            "{} with the key {}: {error}",
            files.certificate.display(),
            files.key.display()
        ))
        .hint("both are PEM files, and the key is that of the file's first certificate")
    })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let file = File::open(path).map_err(|error| unreadable(path, &PemError::Io(error)))?;
    let found = CertificateDer::pem_reader_iter(file).collect();
    let found: std::result::Result<Vec<_>, PemError> = found;
    let found = found.map_err(|error| unreadable(path, &error))?;
    match found.is_empty() {
        true => Err(unreadable(path, &PemError::NoItemsFound)),
        false => Ok(found),
    }
}

/// The permissions are those of the file that is read.
fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?.mode(), file)));
    let (mode, file) = opened.map_err(|error| unreadable(path, &PemError::Io(error)))?;
    if mode & 0o004 != 0 {
        let path = path.display();
        let text = format!("the key {path} is readable by everyone");
        return Err(Error::usage(text).hint(format!("chmod 600 {path}")));
    }
    PrivateKeyDer::from_pem_reader(file).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &PemError) -> Error {
    let exit = match error {
        PemError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => Exit::NotFound,
        PemError::Io(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Exit::Denied,
        _ => Exit::Usage,
    };
    let why = match error {
        PemError::Io(error) => error.to_string(),
        PemError::NoItemsFound => "there is nothing of the kind in it; it has to be PEM".to_owned(),
        // The others may quote the file.
        _ => "it is not valid PEM".to_owned(),
    };
    Error::new(exit, format!("cannot use {}: {why}", path.display()))
}
