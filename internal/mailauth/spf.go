package mailauth

import (
	"context"
	"net"
	"strings"
	"sync"

	"blitiri.com.ar/go/spf"

	"understudy/internal/mta"
)

// SPF asks whether the client may send for the domain of the reverse-path, and for its HELO name (RFC 7208, 2.3 and
// 2.4). For the null reverse-path both are the same question. It takes at most Config.SPFTimeout.
func (v *Verifier) SPF(ctx context.Context, peer mta.Peer, from mta.Path) (mailFrom, helo mta.AuthResult) {
	ctx, cancel := context.WithTimeout(ctx, v.cfg.SPFTimeout)
	defer cancel()
	ip := net.IP(peer.Addr.Addr().Unmap().WithZone("").AsSlice())
	name := heloDomain(peer.Helo)
	var wg sync.WaitGroup
	defer wg.Wait()
	if from.IsNull() {
		helo = v.checkHost(ctx, ip, name, "postmaster", name)
		return helo, helo
	}
	wg.Go(func() { helo = v.checkHost(ctx, ip, name, "postmaster", name) })
	mailFrom = v.checkHost(ctx, ip, name, from.Local, from.DomainKey())
	wg.Wait()
	return mailFrom, helo
}

// heloDomain is the HELO name if it is a domain that can have a record: not a literal, not a single label.
func heloDomain(helo string) string {
	d, err := mta.Domain(helo)
	if err != nil || !strings.Contains(d, ".") {
		return ""
	}
	return d
}

func (v *Verifier) checkHost(ctx context.Context, ip net.IP, helo, local, domain string) mta.AuthResult {
	if domain == "" {
		return mta.AuthResult{Result: "none"}
	}
	if helo == "" {
		helo = "unknown"
	}
	// The library takes what follows the first @ for the domain.
	sender := strings.ReplaceAll(local, "@", "=") + "@" + domain
	result, err := spf.CheckHostWithSender(ip, helo, sender, spf.WithContext(ctx), spf.WithResolver(spfResolver{v.resolver}),
		spf.OverrideVoidLookupLimit(uint(v.cfg.VoidLookups)))
	r := mta.AuthResult{Result: string(result), Domain: domain}
	if err != nil {
		r.Reason = reason(err.Error())
	}
	return r
}

// SPFFindings are what SPF's results say for or against a message, with the weights that hold unless a domain says
// otherwise. A forwarder breaks SPF without any fault of the sender, so a fail alone asks for nothing.
func SPFFindings(mailFrom, helo mta.AuthResult) []mta.Finding {
	var f []mta.Finding
	text := "SPF: " + clean(mailFrom.Domain) + " does not send from this address"
	switch mailFrom.Result {
	case "fail":
		f = append(f, mta.Finding{Name: "spf:fail", Text: text, Weight: 4, Status: "7.23"})
	case "softfail":
		f = append(f, mta.Finding{Name: "spf:softfail", Text: text, Weight: 1.5, Status: "7.23"})
	case "permerror":
		f = append(f, mta.Finding{Name: "spf:permerror", Text: "SPF: the record of " + clean(mailFrom.Domain) + " is in error", Weight: 0.5, Status: "7.24"})
	}
	if helo.Result == "fail" && helo.Domain != mailFrom.Domain {
		f = append(f, mta.Finding{Name: "spf-helo:fail", Text: "SPF: the client may not call itself " + clean(helo.Domain), Weight: 3, Status: "7.23"})
	}
	return f
}
