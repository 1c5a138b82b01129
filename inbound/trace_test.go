package inbound

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy/internal/mta"
)

func traced(change func(*mta.Envelope)) string {
	env := &mta.Envelope{
		ID:       mta.NewID(time.UnixMilli(0)),
		Received: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
		Peer:     mta.Peer{Addr: netip.MustParseAddrPort("192.0.2.10:4321"), Name: "client.example.net", Helo: "client.example.net", Proto: "ESMTPS"},
		From:     mta.Path{Local: "bob", Domain: "example.net"},
		Rcpts:    []mta.Recipient{{Addr: mta.Path{Local: "u", Domain: "example.org"}}},
	}
	if change != nil {
		change(env)
	}
	return strings.ReplaceAll(received(env, "mx2.example.org"), env.ID.String(), "ID")
}

func TestReceivedHasTheOneShape(t *testing.T) {
	const plain = "Received: from client.example.net (client.example.net [192.0.2.10])\r\n" +
		"\tby mx2.example.org (Understudy) with ESMTPS id ID\r\n" +
		"\t(envelope-from <bob@example.net>)\r\n" +
		"\tfor <u@example.org>; Tue, 03 Feb 2026 04:05:06 +0000\r\n"
	for _, tt := range []struct {
		name     string
		change   func(*mta.Envelope)
		old, new string // what differs from plain
	}{
		{"plain", nil, "", ""},
		{"no name", func(e *mta.Envelope) { e.Peer.Name = "" }, "(client.example.net [", "(unknown ["},
		{"name with a trick", func(e *mta.Envelope) { e.Peer.Name = "a b(c)" }, "(client.example.net [", "(unknown ["},
		{"IPv6", func(e *mta.Envelope) { e.Peer.Addr = netip.MustParseAddrPort("[2001:db8::1]:25") }, "[192.0.2.10]", "[IPv6:2001:db8::1]"},
		{"mapped IPv4", func(e *mta.Envelope) { e.Peer.Addr = netip.MustParseAddrPort("[::ffff:192.0.2.10]:25") }, "", ""},
		{"literal HELO", func(e *mta.Envelope) { e.Peer.Helo = "[192.0.2.99]" }, "from client.example.net", "from [192.0.2.99]"},
		{"IPv6 literal HELO", func(e *mta.Envelope) { e.Peer.Helo = "[ipv6:2001:DB8::1]" }, "from client.example.net", "from [IPv6:2001:db8::1]"},
		{"false literal HELO", func(e *mta.Envelope) { e.Peer.Helo = "[192.0.2.99](x)" }, "from client.example.net", "from ?192.0.2.99??x?"},
		{"HELO that speaks for another", func(e *mta.Envelope) { e.Peer.Helo = "x.(mail.example.net[192.0.2.10])" },
			"from client.example.net", "from x.?mail.example.net?192.0.2.10??"},
		{"HELO of all that has meaning", func(e *mta.Envelope) { e.Peer.Helo = "a\t<>()\";@\\`[]{}\x00é\xff" }, "from client.example.net", "from a?????????????????"},
		{"null sender", func(e *mta.Envelope) { e.From = mta.Path{} }, "<bob@example.net>", "<>"},
		{"sender with a trick", func(e *mta.Envelope) { e.From.Local = "a> (x [1.2.3.4])" }, "<bob@", "<a???x??1.2.3.4??@"},
		{"sender at a literal", func(e *mta.Envelope) { e.From.Domain = "[192.0.2.7]" }, "bob@example.net", "bob@[192.0.2.7]"},
		{"UTF-8", func(e *mta.Envelope) { e.From.Local = "jürgen" }, "<bob@", "<jürgen@"},
		{"recipient with a trick", func(e *mta.Envelope) { e.Rcpts[0].Addr.Local = "a>; x" }, "<u@", "<a???x@"},
		{"two recipients", func(e *mta.Envelope) { e.Rcpts = append(e.Rcpts, e.Rcpts[0]) }, "\r\n\tfor <u@example.org>", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := strings.ReplaceAll(plain, tt.old, tt.new)
			if tt.old == "" {
				want = plain
			}
			if got := traced(tt.change); got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// shape is what the filters of primaries look for; nothing that a client sends makes it match elsewhere.
var shape = regexp.MustCompile(`^Received: from \S+ \((?:unknown|[A-Za-z0-9._-]+) \[192\.0\.2\.10\]\)\r\n` +
	`\tby mx2\.example\.org \(Understudy\) with ESMTPS id ID\r\n` +
	`\t\(envelope-from <[^<>()\[\]\s"\\;]*>\)\r\n\tfor <[^<>()\[\]\s"\\;]*>; [^\r\n]+\r\n$`)

func FuzzReceivedKeepsItsShape(f *testing.F) {
	f.Add("x.(mail.example.net[192.0.2.10])", "a b", `"quoted> \" local"`, "u")
	f.Add("[192.0.2.1]", "ok.example.net", "\u2028", "\u0085\r\n")
	f.Fuzz(func(t *testing.T, helo, name, from, to string) {
		got := traced(func(e *mta.Envelope) {
			e.Peer.Helo, e.Peer.Name, e.From.Local, e.Rcpts[0].Addr.Local = helo, name, from, to
		})
		if !shape.MatchString(got) {
			t.Errorf("shape is lost: %q", got)
		}
	})
}

func TestHopsCountsHeaderFieldsOnly(t *testing.T) {
	for _, tt := range []struct {
		content string
		want    int
	}{
		{"", 0},
		{"Received: a\r\nRECEIVED:b\r\n received: folded\r\nX-Received: c\r\nReceivedx: d\r\nReceive\x1a: e\r\n\r\nReceived: f\r\n", 2},
		{"\r\nReceived: body\r\n", 0},
	} {
		for n := 1; n <= len(tt.content)+1; n++ {
			var h hops
			for s := tt.content; s != ""; {
				m := min(n, len(s))
				h.Write([]byte(s[:m]))
				s = s[m:]
			}
			if h.n != tt.want {
				t.Errorf("%q in pieces of %d: got %d, want %d", tt.content, n, h.n, tt.want)
			}
		}
	}
}
