"""What tests see of a page."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Text, classes and addresses of a page; complains about tags that are not closed."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.classes, self.addresses, self.open = "", [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.classes += (found.get("class") or "").split()
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if tag not in ("meta", "img", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.text += data
