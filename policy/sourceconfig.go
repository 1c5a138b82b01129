package policy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"

	"understudy/internal/mta"
)

// Source is one list of recipients that is fetched from elsewhere. Exactly one of File, URL, Command, LDAP and SQL says
// where from. A source may list the recipients of many domains; each takes its own from it.
type Source struct {
	// File is a file on this host that some other program writes. It is read when it has changed.
	File string `yaml:"file"`
	// URL is fetched with HTTP or HTTPS, and only in full if it has changed (ETag, Last-Modified).
	URL string `yaml:"url"`
	// Command is a program and its arguments, run without a shell; its output is the list if it ends with 0.
	Command []string `yaml:"command"`
	// LDAP is a directory that is searched.
	LDAP LDAP `yaml:"ldap"`
	// SQL is a database that is asked.
	SQL SQL `yaml:"sql"`

	// TokenFile holds a token that URL is sent as "Authorization: Bearer".
	TokenFile string `yaml:"token_file"`
	// CAFile is a PEM file with what the certificates of URL and LDAP are checked against. Empty: the system's.
	CAFile string `yaml:"ca_file"`

	// Format is how File, URL and Command are read.
	Format Format `yaml:"format"`
	// Column is the name of the column that holds the addresses, for the format csv.
	Column string `yaml:"column"`
	// Separator stands between the columns of csv.
	Separator string `yaml:"separator"`

	// Complete says that, together with the domain's other lists, it names everyone: who is missing does not exist.
	Complete bool `yaml:"complete"`
	// Every is the time between two looks.
	Every time.Duration `yaml:"every"`
	// Timeout is the longest that one look may take.
	Timeout time.Duration `yaml:"timeout"`
	// MaxSize is the most that is read.
	MaxSize mta.Size `yaml:"max_size"`
	// StaleAfter is the age of the last good look at which the source is no longer fresh.
	StaleAfter time.Duration `yaml:"stale_after"`
	// MaxShrink is how many percent of a domain's recipients may vanish at once. More waits for an operator's word.
	MaxShrink int `yaml:"max_shrink"`
}

// LDAP is a search in a directory.
type LDAP struct {
	// URL is ldap://HOST, ldaps://HOST or ldapi:///PATH.
	URL string `yaml:"url"`
	// StartTLS turns ldap:// into TLS before anything is said.
	StartTLS bool `yaml:"start_tls"`
	// BindDN is who we are. Empty: anonymous.
	BindDN string `yaml:"bind_dn"`
	// PasswordFile holds the password of BindDN.
	PasswordFile string `yaml:"password_file"`
	// Base is where the search begins; everything below is searched.
	Base string `yaml:"base"`
	// Filter chooses the entries (RFC 4515).
	Filter string `yaml:"filter"`
	// Attributes hold the addresses. "smtp:" before a value is read over, values with another such word are not
	// addresses of mail (Active Directory's proxyAddresses).
	Attributes []string `yaml:"attributes"`
	// PageSize is how many entries are asked for at a time. 0: all at once.
	PageSize int `yaml:"page_size"`
}

// SQL is a question to a database.
type SQL struct {
	// Driver is postgres or mysql (also MariaDB).
	Driver string `yaml:"driver"`
	// DSN says where the database is: "postgres://user@host/mail" or "user@tcp(host:3306)/mail".
	DSN string `yaml:"dsn"`
	// DSNFile is a file that holds the DSN, where that has a password.
	DSNFile string `yaml:"dsn_file"`
	// Query gives all addresses, in its first column.
	Query string `yaml:"query"`
	// Lookup, in place of Query, gives a row if the one address exists that is its parameter ($1, or ? for mysql), in
	// lower case.
	Lookup string `yaml:"lookup"`
	// CacheSize is how many answers of Lookup are remembered, CacheFor how long. While the database does not answer, it
	// exists holds for StaleAfter.
	CacheSize int           `yaml:"cache_size"`
	CacheFor  time.Duration `yaml:"cache_for"`
}

// Format is how a list is written.
type Format uint8

// The formats of lists.
const (
	Plain    Format = iota // one address a line, as in Domain.Recipients
	Postfix                // a Postfix table as text, or what postmap -s prints: the keys are the addresses
	CSV                    // with a header line; one column holds addresses
	Patterns               // one RE2 regular expression a line, for the whole address in lower case
)

var formatNames = [...]string{"plain", "postfix", "csv", "regexp"}

func (f Format) String() string { return formatNames[f%4] }

// MarshalText implements encoding.TextMarshaler.
func (f Format) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Format) UnmarshalText(b []byte) error {
	i := slices.Index(formatNames[:], string(b))
	if i < 0 {
		return fmt.Errorf("want plain, postfix, csv or regexp, not %q", b)
	}
	*f = Format(i)
	return nil
}

// DefaultSource is what the keys of a source are that its configuration leaves out.
func DefaultSource() Source {
	return Source{
		LDAP: LDAP{Filter: "(mail=*)", Attributes: []string{"mail"}, PageSize: 500},
		SQL:  SQL{CacheSize: 100_000, CacheFor: 10 * time.Minute},

		Separator: ",", Complete: true, Every: 15 * time.Minute, Timeout: time.Minute, MaxSize: 256 * mta.MiB,
		StaleAfter: 24 * time.Hour, MaxShrink: 20,
	}
}

// SetDefaults makes it DefaultSource, for whoever reads configuration over it.
func (s *Source) SetDefaults() { *s = DefaultSource() }

// kind says where from, in the word of the key; "" if that is not said exactly once.
func (s *Source) kind() string {
	var kinds []string
	for k, set := range map[string]bool{
		"file": s.File != "", "url": s.URL != "", "command": len(s.Command) > 0, "ldap": s.LDAP.URL != "", "sql": s.SQL.Driver != "",
	} {
		if set {
			kinds = append(kinds, k)
		}
	}
	if len(kinds) != 1 {
		return ""
	}
	return kinds[0]
}

// asks tells whether the source is asked for each address instead of being fetched.
func (s *Source) asks() bool { return s.SQL.Lookup != "" }

// Validate reports every mistake.
func (s *Source) Validate() []mta.Fault {
	var faults []mta.Fault
	fault := func(key, format string, args ...any) { faults = append(faults, mta.NewFault(key, format, args...)) }
	kind := s.kind()
	if kind == "" {
		fault("", "where from? Give exactly one of file, url, command, ldap (with its url) and sql (with its driver)")
	}
	switch kind {
	case "url":
		faults = append(faults, s.checkURL()...)
	case "command":
		if s.Command[0] == "" {
			fault("command", "begins with an empty word: write the program and its arguments, [ssh, primary, cat, FILE]")
		}
	case "ldap":
		faults = append(faults, below("ldap", s.LDAP.validate())...)
	case "sql":
		faults = append(faults, below("sql", s.SQL.validate())...)
	}
	if s.TokenFile != "" && kind != "url" {
		fault("token_file", "is only for a url")
	}
	if (s.Format == CSV) != (s.Column != "") {
		fault("column", "is needed for the format csv, and only there")
	}
	if r := []rune(s.Separator); len(r) != 1 || strings.ContainsRune("\r\n\"\ufffd", r[0]) {
		fault("separator", "want one character such as %q, %q or a tab in quotes, \"\\t\"", ",", ";")
	}
	if s.Every < time.Second {
		fault("every", "%v is less than a second", s.Every)
	}
	if s.Timeout < 100*time.Millisecond || s.Timeout > time.Hour {
		fault("timeout", "%v is not between 100ms and 1h", s.Timeout)
	}
	if s.MaxSize < 1 || s.MaxSize > maxListSize {
		fault("max_size", "%v is not between 1 and %v", s.MaxSize, mta.Size(maxListSize))
	}
	if s.StaleAfter < 2*s.Every {
		fault("stale_after", "%v is less than twice every: one look that fails would make the source stale", s.StaleAfter)
	}
	if s.MaxShrink < 0 || s.MaxShrink > 100 {
		fault("max_shrink", "%d is not between 0 and 100 percent", s.MaxShrink)
	}
	return faults
}

func (s *Source) checkURL() []mta.Fault {
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return []mta.Fault{mta.NewFault("url", "must be an http or https URL")}
	}
	if u.User != nil {
		return []mta.Fault{mta.NewFault("url", "must not have a password in it: use token_file")}
	}
	if s.TokenFile != "" && u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return []mta.Fault{mta.NewFault("url", "would carry the token in clear: use https")}
	}
	return nil
}

func (l *LDAP) validate() []mta.Fault {
	var faults []mta.Fault
	u, err := url.Parse(l.URL)
	if err != nil || !slices.Contains([]string{"ldap", "ldaps", "ldapi"}, u.Scheme) || u.Host == "" && u.Scheme != "ldapi" {
		faults = append(faults, mta.NewFault("url", "must be ldap://HOST, ldaps://HOST or ldapi:///PATH"))
	} else {
		clear := u.Scheme == "ldap" && !l.StartTLS && !isLoopback(u.Hostname())
		if clear && l.PasswordFile != "" {
			faults = append(faults, mta.NewFault("url", "would carry the password in clear: use ldaps or start_tls"))
		}
		if l.StartTLS && u.Scheme != "ldap" {
			faults = append(faults, mta.NewFault("start_tls", "is only for ldap://"))
		}
	}
	if (l.BindDN == "") != (l.PasswordFile == "") {
		faults = append(faults, mta.NewFault("bind_dn", "bind_dn and password_file belong together"))
	}
	if _, err := ldap.CompileFilter(l.Filter); err != nil {
		if e, ok := errors.AsType[*ldap.Error](err); ok {
			err = e.Err
		}
		faults = append(faults, mta.NewFault("filter", "%q is no filter: %v", l.Filter, err))
	}
	if _, err := ldap.ParseDN(l.Base); err != nil {
		faults = append(faults, mta.NewFault("base", "%q is no distinguished name: %v", l.Base, err))
	}
	if len(l.Attributes) == 0 || slices.Contains(l.Attributes, "") {
		faults = append(faults, mta.NewFault("attributes", "name those that hold addresses: [mail]"))
	}
	if l.PageSize < 0 || l.PageSize > 100_000 {
		faults = append(faults, mta.NewFault("page_size", "%d is not between 0 and 100000", l.PageSize))
	}
	return faults
}

func (q *SQL) validate() []mta.Fault {
	var faults []mta.Fault
	if q.Driver != "postgres" && q.Driver != "mysql" {
		faults = append(faults, mta.NewFault("driver", "%q is not postgres or mysql", q.Driver))
	}
	if (q.DSN == "") == (q.DSNFile == "") {
		faults = append(faults, mta.NewFault("dsn", "give exactly one of dsn and dsn_file"))
	} else if q.DSN != "" {
		if err := checkDSN(q.Driver, q.DSN); err != nil {
			faults = append(faults, mta.NewFault("dsn", "%v", err))
		}
	}
	if (q.Query == "") == (q.Lookup == "") {
		faults = append(faults, mta.NewFault("query", "give exactly one of query (all addresses) and lookup (one address)"))
	}
	if q.CacheSize < 1 || q.CacheFor < 0 {
		faults = append(faults, mta.NewFault("cache_size", "must be at least 1, and cache_for not below 0"))
	}
	return faults
}

// checkDSN gives no text of the library's, for that can hold the password.
func checkDSN(driver, dsn string) error {
	var err error
	switch driver {
	case "postgres":
		_, err = pgx.ParseConfig(dsn)
	case "mysql":
		_, err = mysql.ParseDSN(dsn)
	}
	if err != nil {
		return fmt.Errorf("is not what %s wants: write postgres://user@host/database, or user@tcp(host:3306)/database for mysql", driver)
	}
	return nil
}

// reservedNames mean something else where a source's name could stand: in Domain.Sources, in an Answer, in metrics.
var reservedNames = []string{learnedSource, byAlways, byAcceptAll, byUnknown, byRelay, recipientsLabel}

// validSourceName keeps to what is good as the name of a file and as the label of a metric.
func validSourceName(s string) bool {
	for _, c := range s {
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != "" && len(s) <= 64 && !slices.Contains(reservedNames, s)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	h, _, err := net.SplitHostPort(host)
	if err == nil {
		host = h
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}
