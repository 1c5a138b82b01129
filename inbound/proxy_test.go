package inbound

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

func proxyConfig(t testing.TB) Config {
	cfg := testConfig(t)
	cfg.Listen[0].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	return cfg
}

func proxyHeader(t testing.TB, version byte, client string) string {
	h := proxyproto.HeaderProxyFromAddrs(version,
		net.TCPAddrFromAddrPort(netip.MustParseAddrPort(client)), net.TCPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.25:25")))
	text, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestProxyHeaderNamesTheClient(t *testing.T) {
	for version := byte(1); version <= 2; version++ {
		r := start(t, proxyConfig(t), nil)
		c := dial(t, r.addr())
		c.send(proxyHeader(t, version, "198.51.100.7:4321") + "EHLO early.example.net\r\n") // header and talk in one packet
		c.want("220 mx2.example.org")
		c.want("250-")
		c.transaction()
		c.say("DATA", "354")
		c.say(".", "250")
		p := r.spool.all()[0].env.Peer
		if p.Addr.String() != "198.51.100.7:4321" || p.Local.String() != "192.0.2.25:25" {
			t.Errorf("version %d: peer %+v", version, p)
		}
	}
}

// The gate judges the client and not the balancer.
func TestGateJudgesTheClientBehindABalancer(t *testing.T) {
	cfg := proxyConfig(t)
	cfg.MaxPerNetwork = 1
	r := start(t, cfg, nil)
	for _, tt := range []struct{ client, want string }{
		{"198.51.100.7:1", "220 "},
		{"198.51.100.8:1", "421 4.7.0"},
		{"203.0.113.1:1", "220 "},
	} {
		c := dial(t, r.addr())
		c.send(proxyHeader(t, 2, tt.client))
		c.want(tt.want)
	}
}

// A balancer that does not say who the client is gives nobody its own trust.
func TestBalancerWithoutHeaderIsNotServed(t *testing.T) {
	r := start(t, proxyConfig(t), nil)
	for _, talk := range []string{"EHLO x\r\n", "PROXY TCP4 nonsense\r\n"} {
		c := dial(t, r.addr())
		c.send(talk)
		if got := c.reply(); got != "" {
			t.Errorf("%q: got %q", talk, got)
		}
	}
	c := dial(t, r.addr())
	c.conn.Close()                                                                                   // a health check, which is no event
	for _, header := range []string{"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00", "PROXY UNKNOWN\r\n"} { // it speaks for itself
		health := dial(t, r.addr())
		health.send(header)
		health.want("220 ")
	}
}

// And who is no balancer has no say in it.
func TestStrangersHeaderIsRefused(t *testing.T) {
	r := start(t, testConfig(t), nil)
	for version := byte(1); version <= 2; version++ {
		c := dial(t, r.addr())
		c.want("220 ")
		c.send(proxyHeader(t, version, "127.0.0.1:4321"))
		if got := c.reply(); got[:3] != "421" && got[:3] != "500" {
			t.Errorf("version %d: got %q", version, got)
		}
	}
}

// memoryConn reads from a buffer and keeps what is written.
type memoryConn struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (c *memoryConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *memoryConn) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *memoryConn) Close() error                     { return nil }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memoryConn) LocalAddr() net.Addr              { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 25} }
func (c *memoryConn) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4321}
}

// Whatever a balancer sends, we don't fall, and who is let in has an address.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte(proxyHeader(f, 1, "198.51.100.7:4321") + "EHLO x\r\n"))
	f.Add([]byte(proxyHeader(f, 2, "[2001:db8::1]:4321") + "EHLO x\r\n"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"))
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\xd8" + string(make([]byte, 216))))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte("PROXY TCP6 ::1 ::1 1 1\r\n"))
	s, err := New(proxyConfig(f), Deps{Spool: &memorySpool{}, Policy: testPolicy{}})
	if err != nil {
		f.Fatal(err)
	}
	l := &listener{srv: s, proxy: s.cfg.Listen[0].ProxyFrom}
	f.Fuzz(func(t *testing.T, in []byte) {
		c := &memoryConn{in: bytes.NewReader(in)}
		w := &wire{srv: s, listener: l, log: s.log, raw: c, conn: c, remote: addrPort(c.RemoteAddr()), local: addrPort(c.LocalAddr())}
		if !w.readProxyHeader() {
			if !w.ended {
				t.Fatal("refused and not ended")
			}
			return
		}
		if !w.remote.Addr().IsValid() || !w.local.Addr().IsValid() {
			t.Fatalf("let in from %v to %v", w.remote, w.local)
		}
		if rest := w.in[w.r:w.w]; !bytes.HasSuffix(in, append(bytes.Clone(rest), readAll(c.in)...)) {
			t.Fatalf("octets after the header are lost: %q of %q", rest, in)
		}
	})
}

func readAll(r *bytes.Reader) []byte {
	p := make([]byte, r.Len())
	r.Read(p)
	return p
}
