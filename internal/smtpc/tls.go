package smtpc

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// TLSMode says how much a session depends on TLS.
type TLSMode uint8

const (
	TLSOpportunistic TLSMode = iota // where it is offered, unverified; in clear otherwise (RFC 7435)
	TLSOff                          // never
	TLSRequire                      // TLS or nothing; the certificate is not looked at
	TLSVerify                       // TLS with a certificate of a known authority for the primary's name, or nothing
	TLSPin                          // TLS with a key that is pinned, or nothing
	TLSDANE                         // what the primary's TLSA records say (RFC 7672)
)

var tlsModeNames = [...]string{"opportunistic", "off", "require", "verify", "pin", "dane"}

func (m TLSMode) String() string { return tlsModeNames[m] }

// TLSPolicy is what a route asks of TLS. The zero value is opportunistic.
type TLSPolicy struct {
	Mode         TLSMode
	Roots        *x509.CertPool      // authorities for TLSVerify; nil: the system's
	Names        []string            // names of which the certificate must have one; none: the primary's own
	Pins         [][sha256.Size]byte // for TLSPin: SHA-256 of a certificate's SubjectPublicKeyInfo, anywhere in the chain
	Certificates []tls.Certificate   // our own, should the primary ask

	tlsa []TLSA // for TLSDANE; DialWith asks for them
}

// TLSA is one record of RFC 6698.
type TLSA struct {
	Usage, Selector, Matching uint8
	Data                      []byte
}

// usable tells the records that RFC 7672, 3.1 lets a mail server heed.
func (r *TLSA) usable() bool {
	return (r.Usage == 2 || r.Usage == 3) && r.Selector <= 1 && r.Matching <= 2
}

// matches reports that the record names the certificate or its key.
func (r *TLSA) matches(c *x509.Certificate) bool {
	b := c.Raw
	if r.Selector == 1 {
		b = c.RawSubjectPublicKeyInfo
	}
	switch r.Matching {
	case 1:
		h := sha256.Sum256(b)
		b = h[:]
	case 2:
		h := sha512.Sum512(b)
		b = h[:]
	}
	return string(b) == string(r.Data)
}

func (p *TLSPolicy) mayClear() bool { return p.Mode == TLSOpportunistic }

// errHandshake tells a failed handshake from a refused STARTTLS.
var errHandshake = errors.New("TLS handshake")

// What a policy can miss.
var (
	ErrNoTLS   = errors.New("the primary does not offer STARTTLS")
	ErrPin     = errors.New("no key of the primary's certificates is pinned")
	ErrDANE    = errors.New("no TLSA record matches the primary's certificates")
	errNoChain = errors.New("no certificate")
)

// resolveDANE turns TLSDANE into what the primary's TLSA records ask for. Only authenticated records count; where there
// are none it is opportunistic, where none is usable TLS is still required (RFC 7672, 2.2). Not to know is an error.
func (d *Dialer) resolveDANE(ctx context.Context, host string, port uint16, p TLSPolicy) (TLSPolicy, error) {
	if d.TLSA == nil {
		return p, errors.New("no resolver for TLSA records")
	}
	records, authentic, err := d.TLSA(ctx, host, port)
	if err != nil {
		return p, err
	}
	if !authentic || len(records) == 0 {
		p.Mode = TLSOpportunistic
		return p, nil
	}
	for _, r := range records {
		if r.usable() {
			p.tlsa = append(p.tlsa, r)
		}
	}
	if len(p.tlsa) == 0 {
		p.Mode = TLSRequire
	}
	return p, nil
}

// starttls does RFC 3207 as far as the policy wants it. EHLO is to be said again if it returns true.
func (c *Conn) starttls(ctx context.Context, p *TLSPolicy) (bool, error) {
	if p.Mode == TLSOff {
		return false, nil
	}
	if !c.caps.StartTLS {
		if p.mayClear() {
			return false, nil
		}
		return false, c.fail(StepSTARTTLS, nil, ErrNoTLS)
	}
	_, err := c.exchange(ctx, StepSTARTTLS, "STARTTLS")
	if err != nil {
		// A refusal in words leaves the session usable; what is no reply, or 421, does not.
		if !c.closed() && p.mayClear() {
			c.tlsErr = err
			return false, nil
		}
		return false, err
	}
	if c.r.Buffered() > 0 { // said before the handshake, to be believed after it: injected
		return false, c.fail(StepSTARTTLS, nil, ErrGarbage)
	}
	return true, c.handshake(ctx, p)
}

func (c *Conn) handshake(ctx context.Context, p *TLSPolicy) error {
	start := time.Now()
	hctx, cancel := context.WithTimeout(ctx, c.limits.of(StepSTARTTLS))
	defer cancel()
	tc := tls.Client(c.nc, c.tlsConfig(p))
	c.nc.SetDeadline(time.Time{}) // the context is the limit
	err := tc.HandshakeContext(hctx)
	fact := &c.trace[len(c.trace)-1] // of the command
	fact.Took += time.Since(start)
	if err != nil {
		fact.Err = fmt.Errorf("%w: %w", errHandshake, err)
		return c.fail(StepSTARTTLS, nil, fact.Err)
	}
	st := tc.ConnectionState()
	c.tls = &st
	c.verified = p.Mode == TLSVerify || p.Mode == TLSPin || p.Mode == TLSDANE
	c.attach(tc)
	return nil
}

func (c *Conn) tlsConfig(p *TLSPolicy) *tls.Config {
	cfg := &tls.Config{
		InsecureSkipVerify: true,             // VerifyConnection does what the policy wants
		MinVersion:         tls.VersionTLS10, // old TLS is better than clear
		Certificates:       p.Certificates,
		VerifyConnection:   func(st tls.ConnectionState) error { return c.verify(p, st.PeerCertificates) },
	}
	if !p.mayClear() {
		cfg.MinVersion = tls.VersionTLS12 // RFC 8996
	}
	if _, err := netip.ParseAddr(c.primary.Host); err != nil {
		cfg.ServerName = c.primary.Host
	}
	return cfg
}

// verify holds the primary's certificates against the policy.
func (c *Conn) verify(p *TLSPolicy, chain []*x509.Certificate) error {
	switch p.Mode {
	case TLSVerify, TLSPin, TLSDANE:
	default:
		return nil
	}
	if len(chain) == 0 {
		return errNoChain
	}
	switch p.Mode {
	case TLSPin:
		return pinned(p, chain)
	case TLSDANE:
		return c.dane(p, chain)
	}
	return c.trusted(p, chain, p.Roots)
}

// trusted wants a chain to roots and one of the names.
func (c *Conn) trusted(p *TLSPolicy, chain []*x509.Certificate, roots *x509.CertPool) error {
	opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	for _, i := range chain[1:] {
		opts.Intermediates.AddCert(i)
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return err
	}
	names := p.Names
	if len(names) == 0 {
		names = []string{c.primary.Host}
	}
	var err error
	for _, n := range names {
		if err = chain[0].VerifyHostname(strings.TrimSuffix(n, ".")); err == nil {
			return nil
		}
	}
	return err
}

func pinned(p *TLSPolicy, chain []*x509.Certificate) error {
	for _, c := range chain {
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		for _, pin := range p.Pins {
			if sum == pin {
				return nil
			}
		}
	}
	return ErrPin
}

// dane is RFC 7672, 3.1: a record of usage 3 names the certificate itself, whatever its names and dates say; one of usage
// 2 names an authority in the chain, and then name and dates count.
func (c *Conn) dane(p *TLSPolicy, chain []*x509.Certificate) error {
	for i := range p.tlsa {
		r := &p.tlsa[i]
		if r.Usage == 3 && r.matches(chain[0]) {
			return nil
		}
		if r.Usage != 2 {
			continue
		}
		for _, ca := range chain[1:] {
			if !r.matches(ca) {
				continue
			}
			roots := x509.NewCertPool()
			roots.AddCert(ca)
			if c.trusted(p, chain, roots) == nil {
				return nil
			}
		}
	}
	return ErrDANE
}

// keepsRequireTLS reports that a message with REQUIRETLS may go this way (RFC 8689, 4.2.1): the certificate was verified
// and the primary offers the extension.
func (c *Conn) keepsRequireTLS() bool { return c.tls != nil && c.verified && c.caps.RequireTLS }

// TLSFailure names what went wrong with TLS in the words of RFC 8460, 4.3; empty if err has nothing to do with it.
func TLSFailure(err error) string {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); !ok || e.Step != StepSTARTTLS {
		return ""
	}
	switch {
	case errors.Is(err, ErrNoTLS):
		return "starttls-not-supported"
	case errors.Is(err, ErrDANE):
		return "tlsa-invalid"
	case isType[x509.HostnameError](err):
		return "certificate-host-mismatch"
	case isType[x509.UnknownAuthorityError](err):
		return "certificate-not-trusted"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "certificate-expired"
	}
	return "validation-failure"
}

func isType[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
