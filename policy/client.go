package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"understudy/internal/dnsbl"
	"understudy/internal/dnsx"
	"understudy/internal/mta"
)

// Resolver is what the judgement needs of the DNS; dnsx.Resolver is one. dnsx.ErrNotFound in an error's chain says that
// there is certainly nothing; any other error that nothing is known, which never speaks against a message.
type Resolver interface {
	LookupMX(ctx context.Context, domain string) (dnsx.MXs, error)
	LookupHost(ctx context.Context, name string) (dnsx.Host, error)
	LookupAddrs(ctx context.Context, name string) ([]netip.Addr, error)
	LookupPTR(ctx context.Context, addr netip.Addr) ([]string, error)
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupList(ctx context.Context, name string) ([]netip.Addr, error)
	// Silent reports that for some time nobody could be asked anything: the trouble is ours, and no domain's.
	Silent() bool
}

// isPublic reports an address of which the Internet could say something. Behind others may be a proxy or a translator of
// addresses that hides the client, so nothing is held against them.
func isPublic(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsGlobalUnicast() && !a.IsPrivate() && !sharedSpace.Contains(a)
}

var sharedSpace = netip.MustParsePrefix("100.64.0.0/10") // of providers' translators (RFC 6598)

// greeting judges what the client said of itself, without asking anybody.
func greeting(peer mta.Peer, hostname string) []mta.Finding {
	var found []mta.Finding
	if peer.Early {
		found = append(found, find("client:early", ""))
	}
	if name := heloFault(peer, hostname); name != "" {
		found = append(found, find(name, strconv.QuoteToASCII(shortened(peer.Helo))))
	}
	return found
}

// shortened bounds what a client chose.
func shortened(s string) string {
	const most = 100
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// heloFault is the worst that can be said of a HELO name; "" if nothing can.
func heloFault(peer mta.Peer, hostname string) string {
	helo, client := peer.Helo, peer.Addr.Addr().Unmap().WithZone("")
	if a, ok := mta.AddressLiteral(helo); ok {
		switch {
		case a.Unmap() == client, !isPublic(client):
			return ""
		case a.Unmap() == peer.Local.Addr().Unmap():
			return "helo:our-name"
		}
		return "helo:foreign-address"
	}
	if plantsAddress(helo) {
		return "helo:planted-address"
	}
	if _, err := netip.ParseAddr(helo); err == nil {
		return "helo:bare-address"
	}
	name, err := mta.Domain(helo)
	switch {
	case helo == "":
		return ""
	case err != nil:
		return "helo:syntax"
	case name == hostname && isPublic(client) && client != peer.Local.Addr().Unmap():
		return "helo:our-name"
	case !strings.Contains(name, "."):
		return "helo:not-fqdn"
	}
	return ""
}

// plantsAddress reports a name such as "x.(mail.example.net[192.0.2.10])": written into a Received field as it is, it
// would have another server believe that address.
func plantsAddress(helo string) bool {
	const signs = " <>()\";@\\`[]{}\t"
	if !strings.ContainsAny(helo, signs) {
		return false
	}
	for _, piece := range strings.FieldsFunc(helo, func(r rune) bool { return strings.ContainsRune(signs, r) }) {
		if len(piece) > 5 && strings.EqualFold(piece[:5], "IPv6:") {
			piece = piece[5:]
		}
		if _, err := netip.ParseAddr(piece); err == nil {
			return true
		}
	}
	return false
}

// maxReverseNames is how many names of one address are followed, as when it connected.
const maxReverseNames = 5

// reverseName judges the client's reverse name. It was looked up when the client connected; if none was confirmed, it
// is found out why.
func reverseName(ctx context.Context, dns Resolver, peer mta.Peer) []mta.Finding {
	client := peer.Addr.Addr().Unmap().WithZone("")
	if peer.Name != "" {
		if looksDynamic(peer.Name, client) {
			return []mta.Finding{find("rdns:dynamic", peer.Name)}
		}
		return nil
	}
	names, err := dns.LookupPTR(ctx, client)
	switch {
	case errors.Is(err, dnsx.ErrNotFound), err == nil && len(names) == 0:
		return []mta.Finding{find("rdns:none", "")}
	case err != nil:
		return nil
	}
	for _, n := range names[:min(len(names), maxReverseNames)] {
		addrs, err := dns.LookupAddrs(ctx, n)
		if slices.Contains(addrs, client) || err != nil && !errors.Is(err, dnsx.ErrNotFound) {
			return nil
		}
	}
	return []mta.Finding{find("rdns:unconfirmed", names[0])}
}

// dynamicWords stand in the reverse names that providers give to lines of households.
var dynamicWords = []string{"dyn", "dynamic", "dynip", "dsl", "adsl", "vdsl", "dialup", "dial", "dhcp", "pool", "ppp", "pppoe", "cable", "cpe", "broadband", "residential"}

// looksDynamic reports a reverse name that holds such a word or the address itself, unless it says that it is static.
func looksDynamic(name string, a netip.Addr) bool {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '.' || r == '-' || r == '_' })
	dynamic := false
	for _, w := range words {
		w = strings.TrimRight(w, "0123456789")
		if w == "static" || w == "mail" || w == "mx" || w == "smtp" {
			return false
		}
		dynamic = dynamic || slices.Contains(dynamicWords, w)
	}
	return dynamic || holdsAddress(words, a)
}

// holdsAddress reports the four octets of an address among the words of a name, forwards or backwards.
func holdsAddress(words []string, a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	var numbers []string
	for _, w := range words {
		if w = strings.TrimLeft(w, "abcdefghijklmnopqrstuvwxyz"); w != "" {
			numbers = append(numbers, strings.TrimLeft(w, "0"))
		}
	}
	b := a.As4()
	var octets []string
	for _, o := range b {
		octets = append(octets, strings.TrimLeft(strconv.Itoa(int(o)), "0"))
	}
	text := "." + strings.Join(numbers, ".") + "."
	forwards := "." + strings.Join(octets, ".") + "."
	slices.Reverse(octets)
	backwards := "." + strings.Join(octets, ".") + "."
	return strings.Contains(text, forwards) || strings.Contains(text, backwards)
}

// borrowedName judges a HELO name that is one of our domains: the domain's own host may use it, if the name leads to it.
func borrowedName(ctx context.Context, dns Resolver, peer mta.Peer, ours func(string) bool) []mta.Finding {
	name, err := mta.Domain(peer.Helo)
	if err != nil || !ours(name) || within(peer.Name, name) {
		return nil
	}
	addrs, err := dns.LookupAddrs(ctx, name)
	if err != nil && !errors.Is(err, dnsx.ErrNotFound) || slices.Contains(addrs, peer.Addr.Addr().Unmap().WithZone("")) {
		return nil
	}
	return []mta.Finding{find("helo:our-domain", name)}
}

// within reports a name that is a domain or lies in it.
func within(name, domain string) bool {
	return name == domain || strings.HasSuffix(name, "."+domain)
}

// listed judges what the DNS lists say of the client.
func listed(ctx context.Context, lists *dnsbl.Lists, client netip.Addr) []mta.Finding {
	var found []mta.Finding
	for _, h := range lists.Check(ctx, client) {
		f := mta.Finding{Name: "dnsbl:" + h.List, Weight: h.Weight, Detail: fmt.Sprintf("%v", h.Replies)}
		f.Text = fmt.Sprintf("the client %s is listed by %s", client.Unmap(), h.List)
		if h.Weight < 0 {
			f.Name = "dnswl:" + h.List
		}
		found = append(found, f)
	}
	return found
}
