package policy

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"understudy/internal/dnsx/dnstest"
	"understudy/internal/filter"
	"understudy/internal/mta"
	"understudy/internal/testkit/peer"
)

// sign gives a message a DKIM signature of a domain, and the record of its key, s._domainkey.DOMAIN.
func sign(t testing.TB, mail, domain string) (signed, record string) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	var out bytes.Buffer
	err := dkim.Sign(&out, strings.NewReader(strings.ReplaceAll(mail, "\n", "\r\n")), &dkim.SignOptions{Domain: domain, Selector: "s", Signer: key})
	if err != nil {
		t.Fatal(err)
	}
	public := base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	return strings.ReplaceAll(out.String(), "\r\n", "\n"), fmt.Sprintf("TXT \"v=DKIM1; k=ed25519; p=%s\"", public)
}

// signed is a message of 4 KiB with a DKIM signature, and what the DNS says of it.
func signed(t testing.TB) (mta.Content, dnstest.Zones) {
	t.Helper()
	line := strings.Repeat("0123456789", 6) + "abcd\n"
	mail, key := sign(t, plainMail+strings.Repeat(line, (4096-500-len(plainMail))/len(line)), "good.example")
	z := world()
	z["s._domainkey.good.example"] = []string{key}
	z["_dmarc.good.example"] = []string{`TXT "v=DMARC1; p=reject"`}
	return mailOf(mail), z
}

// judgeOnce leads one message through all stages.
func judgeOnce(t testing.TB, p *stand, env *mta.Envelope, c mta.Content) {
	env.Verdict = p.Sender(t.Context(), env)
	r, err := p.Recipient(t.Context(), env, mta.Path{Local: "bob", Domain: "example.org"})
	if err != nil {
		t.Fatal(err)
	}
	env.Rcpts = []mta.Recipient{r}
	v, _, err := p.Content(t.Context(), env, c)
	if err != nil || v.Action > mta.Mark || v.Auth.DMARC.Result != "pass" {
		t.Fatalf("%v %+v (%v)", v.Action, v, err)
	}
}

// The cost of the whole policy for a signed message of 4 KiB, from Sender to the verdict. The DNS is on this host, over
// real packets: "known" asks it nothing new, "newcomer" has a client that nobody saw before.
func BenchmarkJudgement(b *testing.B) {
	c, z := signed(b)
	lists := func(cfg *Config, _ map[string]Domain) {
		cfg.Judge.DNSLists, cfg.Judge.Greylist.MaxEntries = []string{"bl.example*4", "wl.example*-1"}, 0
	}
	b.Run("known", func(b *testing.B) {
		p := judgeWith(b, z, lists)
		for b.Loop() {
			judgeOnce(b, p, good(b), c)
			p.log.Reset()
		}
	})
	b.Run("newcomer", func(b *testing.B) {
		p, n := judgeWith(b, z, lists), 0
		for b.Loop() {
			n++
			env := good(b)
			env.Peer.Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, byte(n >> 16), byte(n >> 8), byte(n)}), 25)
			judgeOnce(b, p, env, c)
			p.log.Reset()
		}
	})
	b.Run("rspamd", func(b *testing.B) {
		peer.Require(b, "rspamd")
		dns := fmt.Sprintf("dns {\n nameserver = [%q];\n}\n", dnstest.New(b, z).Addr())
		r := peer.NewRspamd(b, map[string]string{"local.d/options.inc": dns})
		r.Start()
		p := judgeWith(b, z, func(cfg *Config, d map[string]Domain) {
			lists(cfg, d)
			cfg.Filters = []filter.Config{{Kind: filter.Rspamd, Address: r.Addr}}
		})
		for b.Loop() {
			judgeOnce(b, p, good(b), c)
			p.log.Reset()
		}
	})
}
