//! What a failed TLS handshake means.
//!
//! Knows: rustls' errors, wherever they are in a chain of causes. Does not know:
//! who was asked what.

use std::error::Error;

use rustls::{CertificateError, InvalidMessage};

/// The error and its causes, with those that I/O errors are made of: these hide
/// them from their own chain.
fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let first: &'a (dyn Error + 'static) = error;
    std::iter::successors(Some(first), |error: &&'a (dyn Error + 'static)| {
        let error: &'a (dyn Error + 'static) = *error;
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}

/// What to do about it, if this is a failure of TLS that does not pass by itself.
pub(super) fn hint(error: &reqwest::Error) -> Option<&'static str> {
    causes(error)
        .find_map(|error| error.downcast_ref())
        .and_then(of)
}

fn of(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("the certificate is for another name: check the address"),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => Some("the certificate must be renewed, or this machine's clock set"),
        rustls::Error::InvalidCertificate(_) => Some(
            "if it is signed by an authority of your own, name that one's certificate: \
             ca_file = \"/path/ca.pem\"",
        ),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some("the port does not speak TLS: if it is for http, write http:// in the address")
        }
        _ => None,
    }
}
