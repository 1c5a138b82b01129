package mailauth

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"understudy/internal/dnsx/dnstest"
	"understudy/internal/mta"
)

// The cost of a message whose DNS answers are known already: SPF of both identities, one signature, DMARC, the edit.
func BenchmarkMessage(b *testing.B) {
	for name, k := range map[string]key{"rsa": rsaKey(b), "ed25519": edKey(b), "unsigned": {}} {
		for size, body := range map[string]int{"4KiB": 4 << 10, "1MiB": 1 << 20} {
			b.Run(name+"/"+size, func(b *testing.B) {
				z := dnstest.Zones{
					"example.net": {`TXT "v=spf1 include:_spf.example.net -all"`}, "_spf.example.net": {`TXT "v=spf1 ip4:192.0.2.0/24 -all"`},
					"client.example.net": {`TXT "v=spf1 a -all"`, "A 192.0.2.10"}, "_dmarc.example.net": {`TXT "v=DMARC1; p=reject"`},
				}
				msg := plainMessage + strings.Repeat(strings.Repeat("x", 70)+"\r\n", body/72)
				if k.signer != nil {
					z["sel._domainkey.example.net"] = []string{k.record}
					msg = signed(b, msg, k, dkim.SignOptions{})
				}
				v := verifier(b, memory(b, z))
				c := contentOf(msg)
				env := envelope(mta.Path{Local: "bob", Domain: "example.net"}, "client.example.net")
				peer := mta.Peer{Addr: netip.MustParseAddrPort("192.0.2.10:25"), Helo: "client.example.net"}
				b.SetBytes(int64(len(msg)))
				b.ReportAllocs()
				for b.Loop() {
					var auth mta.Auth
					auth.SPF, auth.Helo = v.SPF(b.Context(), peer, env.From)
					auth, findings, err := v.Content(b.Context(), c, auth)
					if err != nil || auth.DMARC.Result != "pass" || len(findings) != 0 {
						b.Fatal(auth, findings, err)
					}
					if _, err := Forged([]string{"mx2.example.org"}, c); err != nil {
						b.Fatal(err)
					}
					Fields("mx2.example.org", env, auth)
				}
			})
		}
	}
}
