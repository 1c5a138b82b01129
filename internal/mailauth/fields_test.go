package mailauth

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/authres"

	"understudy/internal/header"
	"understudy/internal/mta"
)

func envelope(from mta.Path, helo string) *mta.Envelope {
	return &mta.Envelope{From: from, Peer: mta.Peer{Addr: netip.MustParseAddrPort("192.0.2.10:4321"), Helo: helo}}
}

var bob = mta.Path{Local: "bob", Domain: "Example.NET"}

func fullAuth() mta.Auth {
	return mta.Auth{
		SPF:  mta.AuthResult{Result: "pass", Domain: "example.net"},
		Helo: mta.AuthResult{Result: "none", Domain: "client.example.net"},
		DKIM: []mta.AuthResult{
			{Result: "pass", Domain: "example.net", Selector: "sel"},
			{Result: "fail", Domain: "example.com", Selector: "s2", Reason: `body hash (x) "did" not; verify`},
		},
		DMARC: mta.AuthResult{Result: "pass", Domain: "example.net", Reason: "reject"},
	}
}

func TestTheFieldsHaveTheFormOfTheRFCs(t *testing.T) {
	tests := []struct {
		name string
		env  *mta.Envelope
		auth mta.Auth
		want string
	}{
		{"nobody looked", envelope(bob, "client.example.net"), mta.Auth{}, "Authentication-Results: mx2.example.org; none\r\n"},
		{"everything", envelope(bob, "client.example.net"), fullAuth(), "Authentication-Results: mx2.example.org;\r\n" +
			"\tspf=pass\r\n\t\tsmtp.mailfrom=bob@example.net;\r\n" +
			"\tdkim=pass\r\n\t\theader.d=example.net\r\n\t\theader.s=sel;\r\n" +
			"\tdkim=fail (body hash ?x? ?did? not? verify)\r\n\t\theader.d=example.com\r\n\t\theader.s=s2;\r\n" +
			"\tdmarc=pass\r\n\t\tpolicy.dmarc=reject\r\n\t\theader.from=example.net\r\n" +
			"Received-SPF: pass (mx2.example.org: example.net designates 192.0.2.10 as permitted sender)\r\n" +
			"\treceiver=mx2.example.org; identity=mailfrom; client-ip=192.0.2.10;\r\n" +
			"\tenvelope-from=\"bob@example.net\"; helo=client.example.net\r\n" +
			"Received-SPF: none (mx2.example.org: client.example.net says nothing of 192.0.2.10)\r\n" +
			"\treceiver=mx2.example.org; identity=helo; client-ip=192.0.2.10;\r\n" +
			"\tenvelope-from=\"bob@example.net\"; helo=client.example.net\r\n"},
		{"the null sender", envelope(mta.Path{}, "client.example.net"), mta.Auth{
			SPF: mta.AuthResult{Result: "softfail", Domain: "client.example.net"}, Helo: mta.AuthResult{Result: "softfail", Domain: "client.example.net"},
			DMARC: mta.AuthResult{Result: "none"},
		}, "Authentication-Results: mx2.example.org;\r\n\tspf=softfail\r\n\t\tsmtp.helo=client.example.net;\r\n\tdkim=none;\r\n\tdmarc=none\r\n" +
			"Received-SPF: softfail (mx2.example.org: client.example.net does not designate 192.0.2.10 as permitted sender)\r\n" +
			"\treceiver=mx2.example.org; identity=helo; client-ip=192.0.2.10;\r\n\tenvelope-from=\"\"; helo=client.example.net\r\n"},
		{"what needs quotes is left out", envelope(mta.Path{Local: `b"; dmarc=pass`, Domain: "example.net"}, "[192.0.2.9]"), mta.Auth{
			SPF:  mta.AuthResult{Result: "temperror", Domain: "example.net", Reason: "lookup a\r\nb: \"timeout\""},
			DKIM: []mta.AuthResult{{Result: "permerror", Domain: "", Selector: "a;b"}},
		}, "Authentication-Results: mx2.example.org;\r\n\tspf=temperror (lookup a??b: ?timeout?)\r\n\t\tsmtp.mailfrom=example.net;\r\n\tdkim=permerror\r\n" +
			"Received-SPF: temperror (mx2.example.org: error in the check of example.net)\r\n" +
			"\treceiver=mx2.example.org; identity=mailfrom; client-ip=192.0.2.10;\r\n\tenvelope-from=\"example.net\"\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Fields("mx2.example.org", tt.env, tt.auth); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestAnotherParserReadsWhatWasWritten(t *testing.T) {
	text := AuthenticationResults("mx2.example.org", envelope(bob, "client.example.net"), fullAuth())
	_, value, _ := strings.Cut(text, ":")
	id, results, err := authres.Parse(value)
	if err != nil || id != "mx2.example.org" || len(results) != 4 {
		t.Fatal(id, results, err)
	}
	if r := results[0].(*authres.SPFResult); r.Value != authres.ResultPass || r.From != "bob@example.net" {
		t.Errorf("got %+v", r)
	}
	if r := results[1].(*authres.DKIMResult); r.Value != authres.ResultPass || r.Domain != "example.net" {
		t.Errorf("got %+v", r)
	}
	if r := results[3].(*authres.DMARCResult); r.Value != authres.ResultPass || r.From != "example.net" {
		t.Errorf("got %+v", r)
	}
}

// allowed is every line that may ever be written, whatever came from outside.
var allowed = regexp.MustCompile(`^(?:Authentication-Results: mx2\.example\.org(?:; none)?;?` +
	`|\t(?:spf|dkim|dmarc)=[a-z]*(?: \([A-Za-z0-9 .,:/_?-]*\))?;?` +
	`|\t\t(?:smtp\.helo|smtp\.mailfrom|header\.d|header\.s|header\.from|policy\.dmarc)=[A-Za-z0-9._+@-]+;?` +
	`|Received-SPF: [a-z]* \(mx2\.example\.org: [A-Za-z0-9 .,:/_?-]*\)` +
	`|\treceiver=mx2\.example\.org; identity=(?:mailfrom|helo); client-ip=192\.0\.2\.10;` +
	`|\tenvelope-from="[A-Za-z0-9._+@-]*"(?:; helo=[A-Za-z0-9._-]+)?)$`)

func FuzzFieldsKeepTheirShape(f *testing.F) {
	f.Add("bob", "example.net", "client.example.net", "sel", "reason; x=\"y\"", "pass")
	f.Add("a\r\nX: y", "b\r\n\r\n", "x.(mail.example.net[192.0.2.10])", "s;spf=pass", "\\\")(", "pa\nss")
	f.Fuzz(func(t *testing.T, local, domain, helo, selector, reason, result string) {
		r := mta.AuthResult{Result: result, Domain: domain, Selector: selector, Reason: reason}
		a := mta.Auth{SPF: r, Helo: r, DKIM: []mta.AuthResult{r, r}, DMARC: r}
		text := Fields("mx2.example.org", envelope(mta.Path{Local: local, Domain: domain}, helo), a)
		for line := range strings.SplitSeq(strings.TrimSuffix(text, "\r\n"), "\r\n") {
			if !allowed.MatchString(line) || len(line) > 998 {
				t.Errorf("%q in\n%q", line, text)
			}
		}
		fields := 0
		h, err := header.Scan(strings.NewReader(text+"\r\n"), func(f *header.Field) error {
			fields++
			if !f.Is("Authentication-Results") && !f.Is("Received-SPF") {
				return fmt.Errorf("there is a field %q", f.Name)
			}
			return nil
		})
		if err != nil || fields > 3 || h.Octets != int64(len(text)) {
			t.Errorf("%d fields, %v in %q", fields, err, text)
		}
		if spans, err := Forged([]string{"mx2.example.org"}, contentOf(text+"\r\n")); err != nil || len(spans) != 1 {
			t.Errorf("what we write is not known as ours: %v, %v", spans, err)
		}
	})
}
