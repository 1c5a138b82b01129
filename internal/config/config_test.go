package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy/inbound"
	"understudy/policy"
)

const smallest = "hostname: mx2.example.org\ndomains:\n  example.org:\n    recipients: recipients.txt\n"

func mustParse(t *testing.T, name, text string) *Config {
	t.Helper()
	c, err := Parse(name, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFourLinesAreAConfiguration(t *testing.T) {
	c := mustParse(t, "/etc/understudy/understudy.yaml", smallest)
	want := Default()
	want.Hostname = "mx2.example.org"
	want.hand()
	d := Domain{}
	d.Policy.Recipients = "/etc/understudy/recipients.txt"
	want.Domains = Domains{"example.org": d}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestEveryFaultIsReportedAtOnce(t *testing.T) {
	_, err := Parse("F", []byte(`# a comment
hostname: localhost
lgo: {level: info}
log:
  level: loud
  format: xml
policy:
  always_taken: [abuse, a@b]
spool:
  reserve: -1
  open_generations: 1
dns:
  timeout: 90
domains:
  Example.org: {recipient: x}
  example.ORG: {accept_all: true}
  bücher.example: {recipients: 5}
  ex ample: {accept_all: true}
`))
	faults, ok := errors.AsType[Faults](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	want := []string{
		`F:2:1: hostname: "localhost" is not a full name: write it with its domain, mx2.example.org`,
		`F:3:1: lgo: is not a known key; did you mean log?`,
		`F:5:10: log.level: want debug, info, warn or error, not "loud"`,
		`F:6:11: log.format: want auto, text or json, not "xml"`,
		`F:8:25: policy.always_taken[1]: "a@b" is not a local part: write the part before the @`,
		`F:10:12: spool.reserve: "-1" is not a size (write 64MiB, 1.5GiB or a number of octets)`,
		`F:11:3: spool.open_generations: 1 is not between 2 and 64`,
		`F:13:12: dns.timeout: "90" is not a duration: write 90s, 15m, 36h or 30d`,
		`F:15:3: domains.example.org.recipients: who are the recipients? Name the file that lists them, or sources, or say accept_all: true`,
		`F:15:17: domains.example.org.recipient: is not a known key; did you mean recipients?`,
		`F:16:3: domains.example.org: is already given in line 15`,
		`F:17:32: domains.xn--bcher-kva.example.recipients: want text: write it in quotes, "5"`,
		`F:18:3: domains.ex ample: domain "ex ample": label "ex ample" has the character ' '`,
	}
	if got := strings.Split(faults.Error(), "\n"); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestAFileThatIsNoConfigurationSaysWhy(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty", "", "F:1:1: hostname: the name of this host is needed, as the MX records have it: mx2.example.org\nF:1:1: domains: name at least one mail domain"},
		{"syntax", "hostname: a: b\n", "F:1:11: is not YAML: mapping value is not allowed in this context"},
		{"list", "- a\n", "F:1:1: want keys and values such as hostname: mx2.example.org"},
		{"two documents", smallest + "---\na: b\n", "F:6:1: a second document begins here: there must be one"},
		{"no domains", "hostname: mx2.example.org\ndomains: {}\n", "F:2:1: domains: name at least one mail domain"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("F", []byte(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestAByteOrderMarkAndEmptySectionsDoNoHarm(t *testing.T) {
	mustParse(t, "F", "\ufeff---\n"+smallest+"log:\nspool:\n  # dir: /x\n")
}

func TestHostnames(t *testing.T) {
	for s, good := range map[string]bool{
		"mx2.example.org": true, "MX2.Example.ORG.": true, "mx2.bücher.example": true, "": false, "mx2": false, "localhost": false,
		"mx2.localhost": false, "localhost.localdomain": false, "mx_2.example.org": false, "192.0.2.1": false, "-.example.org": false,
		"mx2 .example.org": false, "[192.0.2.1]": false,
	} {
		if faults := checkHostname(s); (len(faults) == 0) != good {
			t.Errorf("%q: %v", s, faults)
		}
	}
	c := mustParse(t, "F", strings.Replace(smallest, "mx2.example.org", "MX2.Bücher.example.", 1))
	if want := "mx2.xn--bcher-kva.example"; c.Hostname != want || c.Policy.Hostname != want {
		t.Errorf("got %q and %q, want %q", c.Hostname, c.Policy.Hostname, want)
	}
}

func TestLoadReadsAFileAndMeansPathsFromItsFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "understudy.yaml")
	if err := os.WriteFile(file, []byte(smallest+"admin: {socket: run/admin.sock}\nspool: {dir: ../spool, old_key_files: [a, /b]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, name := range []string{file, "understudy.yaml"} {
		c, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		got := []string{c.Admin.Socket, c.Admin.TokenFile, c.Spool.Dir, c.Spool.OldKeyFiles[0], c.Spool.OldKeyFiles[1], c.Domains["example.org"].Policy.Recipients}
		want := []string{dir + "/run/admin.sock", "", filepath.Dir(dir) + "/spool", dir + "/a", "/b", dir + "/recipients.txt"}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestAFileThatCanNotBeReadIsAFault(t *testing.T) {
	dir := t.TempDir()
	for file, text := range map[string]string{
		filepath.Join(dir, "missing"): "no such file or directory", dir: "is not a regular file", os.DevNull: "is not a regular file",
	} {
		_, err := Load(file)
		if want := file + ": " + text; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		if _, ok := errors.AsType[Faults](err); !ok {
			t.Errorf("%T is not Faults", err)
		}
	}
}

func TestNeedRestartNamesWhatAReloadCanNotDo(t *testing.T) {
	old := mustParse(t, "F", smallest)
	if got := NeedRestart(old, mustParse(t, "F", smallest)); len(got) != 0 {
		t.Errorf("the same configuration needs a restart for %q", got)
	}
	live := mustParse(t, "F", smallest+"  example.net: {accept_all: true}\nlog: {level: debug}\npolicy: {always_taken: [abuse]}\n")
	if got := NeedRestart(old, live); len(got) != 0 {
		t.Errorf("a reload can do %q", got)
	}
	stiff := mustParse(t, "F", strings.Replace(smallest, "mx2", "mx3", 1)+
		"log: {format: json}\nspool: {dir: /elsewhere, old_key_files: [a]}\ndns: {timeout: 1s}\nadmin: {socket: /x}\n")
	want := []string{"admin.socket", "dns.timeout", "hostname", "inbound.temp_dir", "log.format", "spool.dir", "spool.old_key_files"}
	if got := NeedRestart(old, stiff); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEveryKeyThatNeedsARestartIsAKey(t *testing.T) {
	keys := leaves(Default())
	for _, s := range onlyAtStart {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(keys)), func(key string) bool { return isBelow(key, []string{s}) }) {
			t.Errorf("%s is nothing that can change", s)
		}
	}
}

func TestWhatIsPrintedIsReadBackAsTheSame(t *testing.T) {
	c := mustParse(t, "/F", smallest+"  bücher.example: {accept_all: true}\nlog: {level: debug}\ndns: {max_ttl: 36h, resolvers: ['::1', 192.0.2.1:53]}\n"+
		"policy: {always_taken: ['yes', '010', \"a'b\"]}\nspool: {max_size: 10GiB}\n")
	var b bytes.Buffer
	if err := Print(&b, c); err != nil {
		t.Fatal(err)
	}
	back := mustParse(t, "/F", b.String())
	if !reflect.DeepEqual(leaves(c), leaves(back)) {
		t.Errorf("printed:\n%s\nread back: %+v\nwant: %+v", b.String(), back, c)
	}
	for _, want := range []string{"max_ttl: 36h\n", "max_size: 10GiB\n", "dir: /var/lib/understudy/spool\n", "  xn--bcher-kva.example:\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, b.String())
		}
	}
}

// A colleague's new field must be of a type that the decoder reads, under a key of its own.
func TestEveryFieldOfTheConfigurationCanBeRead(t *testing.T) {
	checkType(t, reflect.TypeFor[Config](), "")
}

func checkType(t *testing.T, typ reflect.Type, key string) {
	t.Helper()
	if typ.Kind() == reflect.Map || typ.Kind() == reflect.Slice && !isText(typ) {
		checkType(t, typ.Elem(), key+"[]")
		return
	}
	if !isMapping(typ) {
		switch typ.Kind() {
		case reflect.String, reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint16, reflect.Float64:
		default:
			if !isText(typ) {
				t.Errorf("%s: nobody reads a %v", key, typ)
			}
		}
		return
	}
	for i := range typ.NumField() {
		if f := typ.Field(i); f.IsExported() && f.Tag.Get("yaml") == "" {
			t.Errorf("%s: the field %s has no yaml tag", key, f.Name)
		}
	}
	seen := map[string]bool{}
	for _, f := range fieldsOf(typ) {
		if seen[f.name] {
			t.Errorf("%s: two fields are called %s", key, f.name)
		}
		seen[f.name] = true
		checkType(t, typ.FieldByIndex(f.index).Type, join(key, f.name))
	}
}

// Whatever its name promises to be a path is meant from the file's folder.
func TestNoPathIsForgotten(t *testing.T) {
	c := Default()
	c.Inbound.TLS.Certificates = make([]inbound.Certificate, 1)
	d := Domain{}
	known := map[*string]bool{}
	for _, p := range append(c.paths(), d.paths()...) {
		known[p] = true
	}
	for _, v := range []reflect.Value{reflect.ValueOf(c).Elem(), reflect.ValueOf(&d).Elem()} {
		eachString(v, "", func(key string, p *string) {
			last := key[strings.LastIndex(key, ".")+1:]
			isPath := slices.Contains([]string{"dir", "socket", "recipients", "cert", "key", "root_cas", "client_ca", "tls_ca", "tls_cert", "tls_key"}, last) ||
				strings.HasSuffix(last, "_file") || strings.HasSuffix(last, "_dir")
			if isPath != known[p] {
				t.Errorf("%s: looks like a path: %v, is treated as one: %v", key, isPath, known[p])
			}
		})
	}
}

func eachString(v reflect.Value, key string, do func(string, *string)) {
	if p, ok := v.Addr().Interface().(*string); ok {
		do(key, p)
		return
	}
	if v.Kind() == reflect.Slice {
		for i := range v.Len() {
			eachString(v.Index(i), key, do)
		}
	}
	if v.Kind() != reflect.Struct {
		return
	}
	for _, f := range fieldsOf(v.Type()) { // none of a leaf such as netip.Prefix
		eachString(v.FieldByIndex(f.index), join(key, f.name), do)
	}
}

func BenchmarkParseOfAThousandDomains(b *testing.B) {
	var text bytes.Buffer
	text.WriteString("hostname: mx2.example.org\ndomains:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "  d%d.example: {accept_all: true, primaries: [mail.d%d.example:25]}\n", i, i)
	}
	for b.Loop() {
		if _, err := Parse("F", text.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}

// Any file is either read or refused with faults that have a place; what is read survives being printed.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		smallest, "a: &x {b: *x}\n<<: *x\n", "hostname: [\n", "? a\n: b\n", "domains: {a.example: {<<: {accept_all: true}}}\nhostname: a.b",
		"hostname: !!str a\n", "log: {level: ~}", "---\n---\n", "spool: {dir: |\n  a\n}\n", "dns: {resolvers: [&a 1, *a]}\n", "hostname: >-\n\n a.b\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("/F", []byte(text))
		if err != nil {
			faults, ok := errors.AsType[Faults](err)
			if !ok || len(faults) == 0 {
				t.Fatalf("%T without faults", err)
			}
			for _, fault := range faults {
				if fault.Line < 1 || fault.Text == "" {
					t.Errorf("fault without a place: %#v", fault)
				}
			}
			return
		}
		var b bytes.Buffer
		if err := Print(&b, c); err != nil {
			t.Fatal(err)
		}
		back, err := Parse("/F", b.Bytes())
		if err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
		if !reflect.DeepEqual(leaves(c), leaves(back)) {
			t.Errorf("read back as something else:\n%s", b.String())
		}
	})
}

func TestASourceBeginsWithItsDefaultsAndItsPathsAreMeantFromTheFolder(t *testing.T) {
	const text = smallest + `    sources: [staff, boxes]
  example.com: {alias_of: example.org, unknown: reject}
policy:
  sources:
    staff: {url: "https://mx1.example.org/list", token_file: staff.token, max_shrink: 0, every: 5m}
    boxes:
      sql: {driver: postgres, dsn_file: secrets/dsn, query: SELECT address FROM boxes}
      complete: false
`
	c := mustParse(t, "/etc/understudy/understudy.yaml", text)
	staff, boxes := policy.DefaultSource(), policy.DefaultSource()
	staff.URL, staff.TokenFile, staff.MaxShrink, staff.Every = "https://mx1.example.org/list", "/etc/understudy/staff.token", 0, 5*time.Minute
	boxes.SQL.Driver, boxes.SQL.DSNFile, boxes.SQL.Query, boxes.Complete = "postgres", "/etc/understudy/secrets/dsn", "SELECT address FROM boxes", false
	if want := map[string]policy.Source{"staff": staff, "boxes": boxes}; !reflect.DeepEqual(c.Policy.Sources, want) {
		t.Errorf("got  %+v\nwant %+v", c.Policy.Sources, want)
	}
	var b bytes.Buffer
	if err := Print(&b, c); err != nil {
		t.Fatal(err)
	}
	if back := mustParse(t, "/elsewhere/understudy.yaml", b.String()); !reflect.DeepEqual(leaves(back), leaves(c)) {
		t.Errorf("printed and read back it is\n%v, was\n%v", leaves(back), leaves(c))
	}
}

func TestTheFaultsOfSourcesAreFoundWhereTheyStand(t *testing.T) {
	_, err := Parse("F", []byte(`hostname: mx2.example.org
domains:
  example.org: {sources: [staff, staf]}
  example.net: {alias_of: example.com}
  example.com: {alias_of: example.org, recipients: x}
  example.edu: {unknown: maybe}
policy:
  sources:
    staff:
      url: ftp://mx1.example.org
      format: csv
    dir:
      ldap: {url: "ldap://dc1.example.org", bind_dn: cn=x, password_file: p, filter: "(mail=*", base: "dc=x"}
    two: {file: a, command: [b]}
    learned: {file: a}
    odd: {file: a, format: yaml, every: 1h, stale_after: 90m}
`))
	if err == nil {
		t.Fatal("it was taken")
	}
	want := []string{
		`F:3:34: domains.example.org.sources[1]: there is no source "staf": name one of policy.sources`,
		`F:4:17: domains.example.net.alias_of: example.com is itself an alias: name example.org`,
		`F:5:17: domains.example.com.alias_of: can't be given together with recipients or sources: the other domain's hold`,
		`F:6:3: domains.example.edu.recipients: who are the recipients? Name the file that lists them, or sources, or say accept_all: true`,
		`F:6:26: domains.example.edu.unknown: want defer, accept or reject, not "maybe"`,
		`F:9:5: policy.sources.staff.column: is needed for the format csv, and only there`,
		`F:10:7: policy.sources.staff.url: must be an http or https URL`,
		`F:13:14: policy.sources.dir.ldap.url: would carry the password in clear: use ldaps or start_tls`,
		`F:13:78: policy.sources.dir.ldap.filter: "(mail=*" is no filter: ldap: unexpected end of filter`,
		`F:14:5: policy.sources.two: where from? Give exactly one of file, url, command, ldap (with its url) and sql (with its driver)`,
		`F:15:5: policy.sources.learned: the name of a source has 1 to 64 letters a-z, digits, - and _, and is none of learned, always_taken, accept_all, unknown, relay, recipients`,
		`F:16:28: policy.sources.odd.format: want plain, postfix, csv or regexp, not "yaml"`,
		`F:16:45: policy.sources.odd.stale_after: 1h30m0s is less than twice every: one look that fails would make the source stale`,
	}
	if got := strings.Split(err.Error(), "\n"); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
