package smtpc

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"understudy/internal/mta"
)

// maxXCLIENT is the most octets of one XCLIENT command.
const maxXCLIENT = 512

// ErrClient is in the chain of an error that came of telling who the client was: it is a word about that client, and none
// about us or the mail.
var ErrClient = errors.New("true client refused")

// Identified reports that the primary took the client of Options.Client for the one it talks to.
func (c *Conn) Identified() bool { return c.identified }

// ClientError is why the primary did not take the true client, where it was told; nil otherwise.
func (c *Conn) ClientError() error { return c.clientErr }

// Identify tells the primary of the client in whose name the session will be used from now on, where XCLIENT is granted to
// us; it can't be undone. Identified says whether it was taken. An error has ended the session; it is an ErrClient where the
// primary wants nothing of that client.
func (c *Conn) Identify(ctx context.Context, p *mta.Peer) error { return c.identify(ctx, p) }

// identify replays the client by XCLIENT, where the primary grants it to us. It comes after STARTTLS, which would make
// the primary forget it.
func (c *Conn) identify(ctx context.Context, p *mta.Peer) error {
	if p == nil || c.identified || c.isItself(p) || !slices.Contains(c.caps.XCLIENT, "ADDR") {
		return nil
	}
	for _, line := range xclientLines(c.caps.XCLIENT, p) {
		if _, err := c.exchange(ctx, StepXCLIENT, line); err != nil {
			if e, ok := errors.AsType[*Error](err); ok && e.Reply != nil && greets(e.Reply.Code) {
				return c.fail(StepXCLIENT, e.Reply, errors.Join(ErrClient, e.Err))
			}
			if c.closed() {
				return err
			}
			c.clientErr = err // 501 for an address family that it does not speak, 550: go on as ourselves
			return nil
		}
	}
	c.identified = true
	c.hostname = heloOf(p)
	patient := c.limits.EHLO
	c.limits.EHLO = c.limits.of(StepXCLIENT)
	err := c.hello(ctx)
	c.limits.EHLO = patient
	return c.blameClient(err)
}

// greets tells the codes by which a server turns a client away: the answer to XCLIENT is the greeting of that client.
func greets(code int) bool { return code/100 == 4 || code == 521 || code == 554 }

// blameClient marks a reply that came after the primary was told of the client: it may be a word about that client.
func (c *Conn) blameClient(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || !c.identified || e.Reply == nil {
		return err
	}
	return &Error{Step: e.Step, Addr: e.Addr, Reply: e.Reply, Err: errors.Join(ErrClient, e.Err)}
}

// isItself reports that the client is the primary, which would trust itself.
func (c *Conn) isItself(p *mta.Peer) bool { return p.Addr.Addr().Unmap() == c.addr.Addr().Unmap() }

// xclientLines makes the commands: what matters least first and the address last, since a primary may believe nothing
// more once it thinks that it talks to a stranger. Values are xtext.
func xclientLines(granted []string, p *mta.Peer) []string {
	proto := "ESMTP"
	if p.Proto == "SMTP" {
		proto = "SMTP"
	}
	name := "[UNAVAILABLE]"
	if p.Name != "" {
		name = p.Name
	}
	addr := p.Addr.Addr().Unmap().String()
	if p.Addr.Addr().Unmap().Is6() {
		addr = "IPV6:" + addr
	}
	attrs := []struct{ key, value string }{
		{"HELO", heloOf(p)}, {"PROTO", proto}, {"PORT", strconv.Itoa(int(p.Addr.Port()))}, {"NAME", name}, {"ADDR", addr},
	}
	lines := []string{"XCLIENT"}
	for _, a := range attrs {
		if !slices.Contains(granted, a.key) {
			continue
		}
		part := " " + a.key + "=" + xtext(a.value)
		if last := len(lines) - 1; len(lines[last])+len(part)+2 <= maxXCLIENT {
			lines[last] += part
			continue
		}
		lines = append(lines, "XCLIENT"+part)
	}
	return lines
}

// heloOf is the client's HELO name as it may be said again, or its address where there is none.
func heloOf(p *mta.Peer) string {
	if _, ok := mta.AddressLiteral(p.Helo); ok {
		return p.Helo
	}
	helo := strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune("`<>()\\\";@[]{},:", r) {
			return '?'
		}
		return r
	}, p.Helo)
	if helo != "" && len(helo) <= 255 {
		return helo
	}
	a := p.Addr.Addr().Unmap()
	if a.Is6() {
		return "[IPv6:" + a.String() + "]"
	}
	return "[" + a.String() + "]"
}

// proxy writes the PROXY protocol's header, version 2, before anything is read: the client, or without one that the
// connection is our own (LOCAL).
func (c *Conn) proxy(ctx context.Context, p *mta.Peer) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	c.block = c.limits.of(StepDial)
	start := time.Now()
	if p != nil && c.isItself(p) {
		p = nil
	}
	c.w.Write(proxyHeader(p, c.addr))
	err := c.w.Flush()
	if err != nil {
		err = c.broken(ctx, StepXCLIENT, err)
	}
	c.trace = append(c.trace, StepFact{Step: StepXCLIENT, Addr: c.addr, Took: time.Since(start), Err: err})
	if err == nil && p != nil {
		c.identified = true
		c.hostname = heloOf(p)
	}
	return err
}

func proxyHeader(p *mta.Peer, to netip.AddrPort) []byte {
	b := []byte("\r\n\r\n\x00\r\nQUIT\n")
	if p == nil {
		return append(b, 0x20, 0x00, 0, 0)
	}
	src, dst := p.Addr, netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	family := byte(0x11)
	if src.Addr().Is6() || dst.Addr().Is6() {
		family = 0x21
	}
	octets := func(a netip.Addr) []byte {
		if family == 0x11 {
			return a.AsSlice()
		}
		x := a.As16()
		return x[:]
	}
	addrs := append(octets(src.Addr()), octets(dst.Addr())...)
	addrs = binary.BigEndian.AppendUint16(addrs, src.Port())
	addrs = binary.BigEndian.AppendUint16(addrs, dst.Port())
	b = append(b, 0x21, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(addrs)))
	return append(b, addrs...)
}

// Conveyable reports that a primary may be told that a is the client: it is an address of the Internet. A loopback,
// private or link-local address could be one that the primary trusts, and we would make it an open relay.
func Conveyable(a netip.Addr) bool {
	a = a.Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() || slices.ContainsFunc(confined, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return false
	}
	switch b := a.As16(); { // in these is an IPv4 address, which must be one, too
	case nat64.Contains(a):
		return Conveyable(netip.AddrFrom4([4]byte(b[12:16])))
	case sixToFour.Contains(a):
		return Conveyable(netip.AddrFrom4([4]byte(b[2:6])))
	}
	return true
}

var (
	nat64     = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixToFour = netip.MustParsePrefix("2002::/16")    // RFC 3056

	// confined are addresses of a network that is not the Internet, besides those that netip knows.
	confined = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),      // RFC 791
		netip.MustParsePrefix("100.64.0.0/10"),  // shared by customers, RFC 6598
		netip.MustParsePrefix("240.0.0.0/4"),    // reserved, RFC 1112
		netip.MustParsePrefix("::/96"),          // IPv4-compatible, RFC 4291
		netip.MustParsePrefix("64:ff9b:1::/48"), // a NAT64 of one's own, RFC 8215
		netip.MustParsePrefix("fec0::/10"),      // site-local, RFC 3879
	}
)
