package smtpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// TLSMode says how much a session depends on TLS.
type TLSMode uint8

const (
	TLSOpportunistic TLSMode = iota // where it is offered, unverified; in clear otherwise (RFC 7435)
	TLSOff                          // never
	TLSRequire                      // TLS or nothing; the certificate is not looked at
)

// TLSPolicy is what a route asks of TLS. The zero value is opportunistic.
type TLSPolicy struct {
	Mode TLSMode
}

func (p *TLSPolicy) mayClear() bool { return p.Mode == TLSOpportunistic }

// errHandshake tells a failed handshake from a refused STARTTLS.
var errHandshake = errors.New("TLS handshake")

// ErrNoTLS is in the chain when the policy wants TLS and the primary does not offer it.
var ErrNoTLS = errors.New("the primary does not offer STARTTLS")

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
		e, ok := errors.AsType[*Error](err)
		if ok && e.Reply != nil && e.Reply.Code != 421 && !c.closed() && p.mayClear() {
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
	c.attach(tc)
	return nil
}

func (c *Conn) tlsConfig(*TLSPolicy) *tls.Config {
	cfg := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10} // old TLS is better than clear
	if _, err := netip.ParseAddr(c.primary.Host); err != nil {
		cfg.ServerName = c.primary.Host
	}
	return cfg
}

// keepsRequireTLS reports that a message with REQUIRETLS may go this way (RFC 8689, 4.2.1): the certificate was verified
// and the primary offers the extension.
func (c *Conn) keepsRequireTLS() bool { return c.tls != nil && c.verified && c.caps.RequireTLS }
