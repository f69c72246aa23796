"""Articles to try, written for this project: places, people and events are made up."""

_HEATING = """
The town of Ellmoor will close its last coal-fired heating plant in March, two years earlier than planned. The council
voted 9 to 4 on Tuesday to connect the remaining 1,200 homes to a network fed by waste heat from a paper mill.
Residents had complained for years about soot on windows and cars.

The work will cost 14 million euros, of which the state pays half. Councillor Ida Brandt, who voted against the plan,
said that the price of heat might rise if the mill ever shut down. The mill's owners have signed a contract for 20
years.

Engineers will begin digging in the old market square in April, and shops there will stay open. A similar network in
the neighbouring town of Haven has cut heating bills by a fifth since 2021. "I will not miss the chimney," said Rolf
Amsel, 71, who lives across the street from it.
"""

_FERRY = """
A ferry with 212 people on board ran aground off the island of Sandoy early on Thursday after its steering failed in
heavy fog. All passengers and crew were brought ashore by fishing boats within three hours. Nine people were treated
for bruises and cold, the regional hospital said, and none of them had to stay overnight.

The Marit, a 31-year-old ship owned by the Norline company, was on its way from Holm to Sandoy when it struck a
sandbank at about 5:40 a.m. Captain Elin Vaage told reporters that the wheel had stopped responding a few minutes
earlier. "We dropped both anchors, but the current was too strong," she said. The engines were shut down before the
ship touched the bottom, which is why no fuel was lost.

Fishermen from the village of Kvie were the first to arrive. Jon Aasen, whose boat took 38 passengers in two trips,
said he had heard the horn and gone out before anybody called him. Children were handed down first, wrapped in
blankets that the ferry's cook had collected from the cabins.

The transport safety board has sent two investigators to the island. They will look at the steering pump, which was
replaced in February after a warning during a routine check. Norline said the pump had passed every test since then
and that it would publish the maintenance records this week. A union that represents the crew has asked for a second
opinion. It says that its members reported stiff steering twice this spring and received no answer.

Divers found no hole in the hull on Thursday afternoon. A tug is expected to pull the ship free on Saturday, when the
tide will be at its highest. Until then, a smaller boat without room for cars will serve the island twice a day. The
Sandoy school, which has 64 pupils, most of whom cross by ferry, will teach by video call on Friday.

It is the third accident on the route in ten years. After the second, in 2019, parliament promised money for a tunnel,
but the plans were put aside when estimates of the cost doubled. Mayor Tora Lunde said on the pier that she would raise
the matter again. "We were lucky with the sand and lucky with the fishermen," she said. "An island of 900 people should
not have to be lucky twice."
"""

_LIBRARY = """
When the city library of Port Callis reopens on Monday after four years of repairs, most of its visitors will not
notice the change that cost the most. It lies eleven metres below the reading room, behind a steel door: a store for
two million books that is kept dry by a river.

The old cellar was flooded in the storm of October 2019, when the harbour wall broke in three places. Water stood
waist-high among the shelves for six days, and some 80,000 volumes were lost, among them the only complete set of the
city's first newspaper. Volunteers carried wet books up the stairs in chains, and a frozen fish warehouse took in
those that could still be saved. About 31,000 have been dried, page by page, in a former cannery, a job that will go
on for at least five more years.

Instead of moving the store to higher ground, as insurers had asked, the city decided to rebuild it in the same place.
The reason is money: a new building outside the centre would have cost 95 million dollars, while the repairs came to
61 million. It is also pride, says Head Librarian Samuel Okoro. "A library that sends its books away has already lost
half of them," he said. "People ask for what they can get in ten minutes."

The engineers of the Dutch company Van Reyn built a second wall around the cellar, half a metre from the first. Between
the two runs water from the Lisk, the river that passes behind the building. It is pumped through all year at the
same temperature, draws moisture out of the walls, and cools the rooms in summer. If the pressure outside rises, as it
does before a flood, the space between the walls is filled to the top, so that nothing pushes from one side alone. The
pumps are powered by a small turbine in the river, and two diesel engines stand by.

Not everybody is convinced. Hannah Weiss, who teaches hydraulics at the university and advised the city until 2021,
says that the design has been tried in tunnels and in one bank vault, but never in a building of this size. Her main
worry is sand, which the Lisk carries in spring and which could block the pumps within hours. Van Reyn answers that
filters can be changed while the system runs, and that it will keep a team in the city for the first two years. The
contract obliges the company to pay for damage up to 20 million dollars.

A first test came sooner than anybody wanted. In March, when the work was nearly done, a storm raised the harbour by
2.3 metres, only 40 centimetres less than in 2019. Streets were under water for a night. In the store, sensors showed a
humidity of 48 percent, the same as on any other day. The sand filters were changed twice.

For readers, there are quieter improvements. The reading room has got back its glass roof, which was painted over
during a war and forgotten, and there are 140 seats more than before. Books that are ordered by noon come up on a lift
by one o'clock. The children's section, once a corridor, now fills the former coin collection, vault door included. The
coins have gone to the museum across the square.

The opening will be followed by a week without fees for new cards. Okoro hopes for 5,000 of them. He lost one battle,
though: the city refused to pay for longer hours, so that the library will close at six in the evening, as it has
since 1974. A petition against that, which was laid out in the tent that served as the library during the repairs, had
been signed by more than 12,000 people when the tent was taken down on Friday.
"""


def _article(text: str) -> str:
    """Paragraphs as lines."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


EXAMPLES = tuple(map(_article, (_HEATING, _FERRY, _LIBRARY)))
STORIES = {"A town's heating": EXAMPLES[0], "A ferry aground": EXAMPLES[1], "A long article": EXAMPLES[2]}
"""What the page's buttons run."""
