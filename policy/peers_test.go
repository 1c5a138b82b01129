package policy

import (
	"context"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"understudy/internal/mta"
	"understudy/internal/smtpc"
	"understudy/internal/testkit"
	"understudy/internal/testkit/peer"
)

// people is a directory of n persons, one of whom has only proxyAddresses.
func people(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "dn: uid=u%04d,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: u%04d\ncn: U\nsn: U\nmail: u%04d@Example.org\n\n", i, i, i)
	}
	b.WriteString("dn: uid=ad,dc=example,dc=org\nobjectClass: inetOrgPerson\nobjectClass: mailRecipient\nuid: ad\ncn: U\nsn: U\n" +
		"proxyAddresses: SMTP:Main@example.org\nproxyAddresses: smtp:other@example.net\nproxyAddresses: SIP:phone@example.org\n" +
		"proxyAddresses: X500:/o=Org/ou=First Group/cn=ad\n\n")
	return b.String()
}

// sourced is a loaded policy whose only source serves both domains.
func sourced(t *testing.T, s Source) *Policy {
	t.Helper()
	cfg := DefaultConfig()
	cfg.StateDir = filepath.Join(t.TempDir(), "state")
	cfg.Sources = map[string]Source{"s": s}
	return loaded(t, cfg, map[string]Domain{"example.org": {Sources: []string{"s"}}, "example.net": {Sources: []string{"s"}}}, quiet.Log)
}

func wants(t *testing.T, p *Policy, want map[string]string) {
	t.Helper()
	for to, reply := range want {
		got := decide(t, p, to)
		if strings.Contains(got, " -> ") {
			got = "taken"
		}
		if !strings.HasPrefix(got, reply) {
			t.Errorf("%s: got %q, want %q", to, got, reply)
		}
	}
}

func TestADirectoryIsReadInPagesAndOverTLS(t *testing.T) {
	cert, _ := testkit.Certificate(t, "127.0.0.1")
	slapd := peer.NewSlapd(t, people(1200), cert)
	slapd.Start()
	dir := t.TempDir()
	ca, password, wrong := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "password"), filepath.Join(dir, "wrong")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})))
	write(t, password, peer.SlapdPassword+"\n")
	write(t, wrong, "guess\n")

	s := DefaultSource()
	s.CAFile = ca
	s.LDAP.Base, s.LDAP.Filter = "dc=example,dc=org", "(|(mail=*)(proxyAddresses=*))"
	s.LDAP.Attributes = []string{"mail", "proxyAddresses"}
	s.LDAP.BindDN, s.LDAP.PasswordFile = peer.SlapdAdmin, password
	all := map[string]string{
		"u0000@example.org": "taken", "U1199@example.org": "taken", "main@example.org": "taken", "other@example.net": "taken",
		"phone@example.org": "550 5.1.1", "u1200@example.org": "550 5.1.1",
	}
	for _, url := range []string{"ldap://" + slapd.Addr, "ldaps://" + slapd.TLSAddr, "starttls"} {
		s := s
		if s.LDAP.URL = url; url == "starttls" {
			s.LDAP.URL, s.LDAP.StartTLS = "ldap://"+slapd.Addr, true
		}
		t.Run(url[:5], func(t *testing.T) { wants(t, sourced(t, s), all) })
	}
	s.LDAP.URL = "ldaps://" + slapd.TLSAddr
	for name, change := range map[string]func(*Source){
		"a certificate of nobody we know": func(s *Source) { s.CAFile = "" },
		"a wrong password":                func(s *Source) { s.LDAP.PasswordFile = wrong },
		"a limit that cuts the result":    func(s *Source) { s.LDAP.BindDN, s.LDAP.PasswordFile, s.LDAP.PageSize = "", "", 0 },
		"more than we read":               func(s *Source) { s.MaxSize = 1000 },
		"an empty result":                 func(s *Source) { s.LDAP.Filter = "(uid=nobody)" },
	} {
		t.Run(name, func(t *testing.T) {
			s := s
			change(&s)
			p := sourced(t, s)
			wants(t, p, map[string]string{"u0000@example.org": "450 4.1.1", "nobody@example.org": "450 4.1.1"})
			if st := p.Sources()[0]; st.Err == "" || st.Age >= 0 {
				t.Errorf("the source says %+v", st)
			}
		})
	}
}

func TestAPersonWhoLeavesTheDirectoryIsRefusedAndTheLastCopyOutlivesTheServer(t *testing.T) {
	cert, _ := testkit.Certificate(t, "127.0.0.1")
	slapd := peer.NewSlapd(t, people(10), cert)
	slapd.Start()
	s := DefaultSource()
	s.LDAP.URL, s.LDAP.Base = "ldap://"+slapd.Addr, "dc=example,dc=org"
	p := sourced(t, s)
	wants(t, p, map[string]string{"u0003@example.org": "taken"})

	conn, err := ldap.DialURL("ldap://" + slapd.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Bind(peer.SlapdAdmin, peer.SlapdPassword); err != nil {
		t.Fatal(err)
	}
	if err := conn.Del(ldap.NewDelRequest("uid=u0003,dc=example,dc=org", nil)); err != nil {
		t.Fatal(err)
	}
	if err := p.Refresh(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	wants(t, p, map[string]string{"u0003@example.org": "550 5.1.1", "u0004@example.org": "taken"})

	slapd.Stop()
	if err := p.Refresh(t.Context(), "s"); err == nil {
		t.Error("a server that is away was read")
	}
	again := loaded(t, p.cfg, p.domains, quiet.Log) // a restart during the outage
	wants(t, again, map[string]string{"u0003@example.org": "550 5.1.1", "u0004@example.org": "taken"})
}

// databases are the two kinds, each with a table of addresses.
func databases(t *testing.T) map[string]SQL {
	t.Helper()
	pg, maria := peer.NewPostgres(t), peer.NewMariaDB(t)
	pg.Start()
	maria.Start()
	return map[string]SQL{
		"postgres": {Driver: "postgres", DSN: pg.DSN(), CacheSize: 100},
		"mysql":    {Driver: "mysql", DSN: maria.DSN(), CacheSize: 100},
	}
}

func open(t *testing.T, q SQL) *sql.DB {
	t.Helper()
	db, err := openSQL(q, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for range 100 { // MariaDB listens before it serves
		if err = db.PingContext(t.Context()); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"CREATE TABLE boxes (address VARCHAR(255) PRIMARY KEY, quota INT)",
		"INSERT INTO boxes VALUES ('alice@example.org', 1), ('Bob@Example.org', 2), ('carol@example.net', NULL)",
	} {
		if _, err := db.ExecContext(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

func TestADatabaseIsReadInFullOrAskedForEachAddress(t *testing.T) {
	for driver, q := range databases(t) {
		db := open(t, q)
		t.Run(driver+" in full", func(t *testing.T) { readInFull(t, q) })
		t.Run(driver+" for each address", func(t *testing.T) { askForEach(t, q, db) })
	}
}

func readInFull(t *testing.T, q SQL) {
	s := DefaultSource()
	q.Query = "SELECT address, quota FROM boxes"
	s.SQL = q
	wants(t, sourced(t, s), map[string]string{
		"alice@example.org": "taken", "bob@example.org": "taken", "bob+x@example.org": "taken", "carol@example.net": "taken",
		"carol@example.org": "550 5.1.1",
	})
	s.SQL.Query = "SELECT nothing FROM nowhere"
	wants(t, sourced(t, s), map[string]string{"alice@example.org": "450 4.1.1"})
}

// askForEach ends with a database that answers no more: what it said is remembered, the rest is deferred.
func askForEach(t *testing.T, q SQL, db *sql.DB) {
	s := DefaultSource()
	q.Lookup, q.CacheFor = "SELECT 1 FROM boxes WHERE lower(address) = $1", time.Hour
	if q.Driver == "mysql" {
		q.Lookup = "SELECT 1 FROM boxes WHERE address = ?"
	}
	s.SQL = q
	p := sourced(t, s)
	want := map[string]string{
		"alice@example.org": "taken", "BOB+x@example.org": "taken", "carol@example.net": "taken", "carol@example.org": "550 5.1.1",
	}
	wants(t, p, want)
	if _, err := db.ExecContext(t.Context(), "DELETE FROM boxes"); err != nil {
		t.Fatal(err)
	}
	p.sources["s"].ask.proved = time.Time{}                                                       // ten seconds later
	wants(t, p, map[string]string{"dave@example.org": "450 4.1.1", "alice@example.org": "taken"}) // it has lost everybody
	p = sourced(t, s)
	wants(t, p, map[string]string{"dave@example.org": "550 5.1.1"}) // that it never had anybody is the operator's word
	if _, err := db.ExecContext(t.Context(), "INSERT INTO boxes VALUES ('alice@example.org', 1), ('bob@example.org', 2), ('carol@example.net', NULL)"); err != nil {
		t.Fatal(err)
	}
	p = sourced(t, s)
	wants(t, p, want)
	if _, err := db.ExecContext(t.Context(), "DROP TABLE boxes"); err != nil {
		t.Fatal(err)
	}
	wants(t, p, want)
	wants(t, p, map[string]string{"new@example.org": "450 4.1.1"})
	a, err := p.Lookup(t.Context(), path(t, "alice@example.org"))
	if err != nil || a.Source != "s" || a.Verdict != Accept || !a.Known {
		t.Errorf("got %+v (%v)", a, err)
	}
}

func TestADatabaseThatIsAwayDefersAtOnce(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // takes connections and says nothing
	for _, q := range []SQL{
		{Driver: "postgres", DSN: "postgres://u@" + l.Addr().String() + "/d?sslmode=disable", Lookup: "SELECT 1"},
		{Driver: "mysql", DSN: "u@tcp(" + l.Addr().String() + ")/d", Lookup: "SELECT 1"},
	} {
		s := DefaultSource()
		s.Timeout = 200 * time.Millisecond
		q.CacheSize = 10
		s.SQL = q
		p := sourced(t, s)
		began := time.Now()
		for range 20 { // the second and all later ones do not wait
			wants(t, p, map[string]string{"a@example.org": "450 4.1.1", "postmaster@example.org": "taken"})
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%s: 20 questions took %v", q.Driver, took)
		}
	}
}

// callouts asks a primary as the daemon does.
func callouts(t *testing.T, addr string) func(context.Context, string, mta.Path) (mta.Reply, error) {
	t.Helper()
	primary, err := mta.ParsePrimary(addr)
	if err != nil {
		t.Fatal(err)
	}
	dialer := &smtpc.Dialer{Hostname: "mx2.example.org"}
	return func(ctx context.Context, _ string, to mta.Path) (mta.Reply, error) {
		conn, err := dialer.Dial(ctx, primary)
		if err != nil {
			return mta.Reply{}, err
		}
		defer conn.Close()
		if r, err := conn.Mail(ctx, mta.Path{}); err != nil || !r.Positive() {
			return mta.Reply{}, fmt.Errorf("MAIL: %v: %w", r, err)
		}
		reply, err := conn.Rcpt(ctx, to)
		if e, ok := errors.AsType[*smtpc.Error](err); ok && e.Reply != nil {
			return *e.Reply, nil
		}
		return reply, err
	}
}

func TestAPostfixTeachesWhoItsRecipientsAre(t *testing.T) {
	postfix := peer.NewPostfix(t, map[string]string{
		"virtual_mailbox_maps": "inline:{{alice@example.org = mail/},{postmaster@example.org = mail/}}", "recipient_delimiter": "+",
	})
	postfix.Start()
	p, err := New(DefaultConfig(), map[string]Domain{"example.org": {Sources: []string{"learned"}}}, Deps{Log: quiet.Log, Callout: callouts(t, postfix.Addr)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, local := range []string{"", "alice", "bob"} { // its nature first
		p.callOut(t.Context(), callout{"example.org", local})
	}
	postfix.Stop()
	p.callOut(t.Context(), callout{"example.org", "carol"})
	p.callOut(t.Context(), callout{"example.org", "alice"})
	wants(t, p, map[string]string{
		"alice@example.org": "taken", "alice+x@example.org": "taken", "bob@example.org": "550 5.1.1", "carol@example.org": "450 4.1.1",
	})
	if n := p.learned.domains["example.org"].nature; n != tells {
		t.Errorf("its nature is %v", n)
	}
}

func TestAPostfixThatTakesEverybodyIsFoundOut(t *testing.T) {
	postfix := peer.NewPostfix(t, nil)
	postfix.Start()
	p, err := New(DefaultConfig(), map[string]Domain{"example.org": {Sources: []string{"learned"}}}, Deps{Log: quiet.Log, Callout: callouts(t, postfix.Addr)})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, local := range []string{"alice", "", "bob"} {
		p.callOut(t.Context(), callout{"example.org", local})
	}
	wants(t, p, map[string]string{"alice@example.org": "450 4.1.1", "bob@example.org": "450 4.1.1", "postmaster@example.org": "taken"})
}
