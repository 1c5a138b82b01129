package forwarder

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
)

// Domain is what the config says of the outbound side of one mail domain. Domains with the same primaries share sessions
// and limits if these keys are the same too.
type Domain struct {
	// TLS to the primaries: opportunistic (the default: used where offered, not verified), off, require (any certificate),
	// verify (a certificate of a known authority for the primary's name), pin (one of tls_pins), dane (what the TLSA records
	// say; needs a validating resolver), mta-sts (what the domain's own policy says, once it was seen).
	TLS string `yaml:"tls"`
	// For verify: a file with the certificates of the authorities, in PEM. Empty: those of the system.
	TLSCA string `yaml:"tls_ca"`
	// For verify: names of which the certificate must have one. None: the primary's own name.
	TLSNames []string `yaml:"tls_names"`
	// For pin: SHA-256 of the public key (SubjectPublicKeyInfo), in base64 or hexadecimal, optionally after "sha256/".
	TLSPins []string `yaml:"tls_pins"`
	// Our own certificate and its key, in PEM, for primaries that ask for one.
	TLSCert string `yaml:"tls_cert"`
	TLSKey  string `yaml:"tls_key"`
	// How the primary learns who the client was: auto (the default: by XCLIENT where it grants that to us), xclient (the same),
	// proxy_v2 (a PROXY header; every session must have one then), headers (only by the Received field).
	ClientIdentity string `yaml:"client_identity"`
	// Speak LMTP (RFC 2033) to the primaries.
	LMTP bool `yaml:"lmtp"`
	// How old mail may become before it is put into quarantine. 0: as the forwarder section says.
	Expire time.Duration `yaml:"expire"`
}

var tlsModes = map[string]smtpc.TLSMode{
	"": smtpc.TLSOpportunistic, "opportunistic": smtpc.TLSOpportunistic, "off": smtpc.TLSOff, "require": smtpc.TLSRequire,
	"verify": smtpc.TLSVerify, "pin": smtpc.TLSPin, "dane": smtpc.TLSDANE,
	"mta-sts": smtpc.TLSOpportunistic, // until a policy says more
}

var identities = []string{"", "auto", "xclient", "proxy_v2", "headers"}

// Validate tells every fault.
func (d *Domain) Validate() []mta.Fault {
	var faults []mta.Fault
	add := func(bad bool, key, format string, args ...any) {
		if bad {
			faults = append(faults, mta.NewFault(key, format, args...))
		}
	}
	mode, known := tlsModes[d.TLS]
	add(!known, "tls", "%q is none of opportunistic, off, require, verify, pin, dane, mta-sts", d.TLS)
	add(mode == smtpc.TLSPin && len(d.TLSPins) == 0, "tls_pins", "tls is pin, so there must be one")
	add(known && mode != smtpc.TLSPin && len(d.TLSPins) > 0, "tls_pins", "has no effect unless tls is pin")
	add(known && mode != smtpc.TLSVerify && d.TLSCA != "", "tls_ca", "has no effect unless tls is verify")
	add(known && mode != smtpc.TLSVerify && len(d.TLSNames) > 0, "tls_names", "has no effect unless tls is verify")
	for i, p := range d.TLSPins {
		_, err := parsePin(p)
		add(err != nil, fmt.Sprintf("tls_pins[%d]", i), "%v", err)
	}
	for i, n := range d.TLSNames {
		_, err := mta.Domain(n)
		add(err != nil, fmt.Sprintf("tls_names[%d]", i), "%v", err)
	}
	add((d.TLSCert == "") != (d.TLSKey == ""), "tls_cert", "needs both tls_cert and tls_key")
	add(!slices.Contains(identities, d.ClientIdentity), "client_identity", "%q is none of auto, xclient, proxy_v2, headers", d.ClientIdentity)
	add(d.Expire < 0, "expire", "%s: must not be negative", d.Expire)
	return faults
}

func parsePin(s string) (pin [sha256.Size]byte, err error) {
	s = strings.TrimPrefix(s, "sha256/")
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(pin) {
		b, err = base64.StdEncoding.DecodeString(s)
	}
	if err != nil || len(b) != len(pin) {
		return pin, fmt.Errorf("%q is not the SHA-256 of a key", s)
	}
	copy(pin[:], b)
	return pin, nil
}

// key tells domains apart that can't share sessions; empty for the default. Expire has nothing to do with sessions.
func (d Domain) key(dest string) string {
	d.Expire = 0
	if d.TLS == "mta-sts" {
		return fmt.Sprintf("%s %+v", dest, d) // each domain has a policy of its own
	}
	if s := fmt.Sprintf("%+v", d); s != fmt.Sprintf("%+v", Domain{}) {
		return s
	}
	return ""
}

// policy makes the TLS policy of a route.
func (f *Forwarder) policy(d *Domain) (smtpc.TLSPolicy, error) {
	p, err := d.policy()
	if err == nil && p.Mode == smtpc.TLSDANE && f.dialer.TLSA == nil {
		err = errors.New("forwarder: tls: dane needs a resolver for TLSA records")
	}
	if err == nil && d.TLS == "mta-sts" && f.sts == nil {
		err = errors.New("forwarder: tls: mta-sts needs a resolver for TXT records")
	}
	return p, err
}

// policy reads the certificates and makes the TLS policy. It is made anew for each route that starts work, so that files
// that changed are seen.
func (d *Domain) policy() (smtpc.TLSPolicy, error) {
	p := smtpc.TLSPolicy{Mode: tlsModes[d.TLS], Names: d.TLSNames}
	for _, s := range d.TLSPins {
		pin, err := parsePin(s)
		if err != nil {
			return p, fmt.Errorf("forwarder: tls_pins: %w", err)
		}
		p.Pins = append(p.Pins, pin)
	}
	if d.TLSCA != "" {
		pem, err := os.ReadFile(d.TLSCA)
		if err != nil {
			return p, fmt.Errorf("forwarder: tls_ca: %w", err)
		}
		p.Roots = x509.NewCertPool()
		if !p.Roots.AppendCertsFromPEM(pem) {
			return p, fmt.Errorf("forwarder: tls_ca: no certificate in %s", d.TLSCA)
		}
	}
	if d.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(d.TLSCert, d.TLSKey)
		if err != nil {
			return p, fmt.Errorf("forwarder: tls_cert: %w", err)
		}
		p.Certificates = []tls.Certificate{cert}
	}
	return p, nil
}
